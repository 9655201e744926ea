"""Settings of a server: names of models, faults in words."""

import pytest

import polymodal as pm
from polymodal.server.settings import Place, Settings


def test_a_folder_names_its_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Place.parse("models/fruit/").name == "fruit"
    assert Place.parse("best=models/fruit").name == "best"
    assert str(Place.parse("best=models/fruit").folder) == "models/fruit"
    assert Place.parse(".").name == tmp_path.name


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"port": 99999}, "port"),
        ({"portt": 1}, "portt"),
        ({"workers": 0}, "workers"),
        ({"batch": "many"}, "batch"),
        ({"deadline": -1}, "deadline"),
    ],
)
def test_faults_name_the_setting_and_the_value(options, words):
    with pytest.raises(pm.SpecError, match=rf"^{words}: .*, got"):
        Settings.make("model", **options)


def test_a_fault_never_shows_the_token():
    with pytest.raises(pm.SpecError) as error:
        Settings.make("model", token="hush")
    assert "token" in str(error.value)
    assert "hush" not in str(error.value)


def test_models_must_have_names_of_their_own():
    with pytest.raises(pm.SpecError, match="name=folder"):
        Settings.make("a/model", "b/model")
    assert len(Settings.make("one=a/model", "two=b/model").models) == 2
    with pytest.raises(pm.SpecError, match="models"):
        Settings.make()


@pytest.mark.parametrize("token", [" starts with a space", "ends with a line\n", "geheimnisvoll-ß", ""])
def test_a_token_that_no_header_can_carry_is_refused(token):
    with pytest.raises(pm.SpecError, match=r"^token: "):
        Settings.make("model", token=token)


def test_allow_hosts_are_hosts():
    hosts = ("a.example", "a.example:8443", "[2001:db8::1]", "[2001:db8::1]:80")
    assert Settings.make("model", allow_hosts=hosts).allow_hosts == hosts
    for wrong in ("https://a.example", "a.example/x", "*.example", "u@a.example", "2001:db8::1", "*", ""):
        with pytest.raises(pm.SpecError, match="allow_hosts"):
            Settings.make("model", allow_hosts=(wrong,))


def test_a_fault_of_the_whole_shows_no_setting():
    with pytest.raises(pm.SpecError) as error:
        Settings.make("a/m", "b/m", token="hush-hush-hush")
    assert "Place" not in str(error.value)
    assert "hush" not in str(error.value)

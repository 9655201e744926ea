"""Settings: what one makes void of another is refused."""

import pytest
from pydantic import ValidationError

from polymodal.settings import GRADIENT_METHODS, Training


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"balance": "none", "auxiliary": 0.5}, "auxiliary has no effect with balance=none"),
        ({"modulation": 0.5}, "modulation has no effect with balance=auxiliary"),
        ({"objective": "mgda", "balance": "ogm_ge"}, "Leave out one"),
        ({"objective": "gradnorm", "balance": "mmpareto"}, "Leave out one"),
        ({"objective": "sum"}, "objective"),
        ({"alignment": {"inputs": ["a"]}}, "two or more different names"),
        ({"alignment": {"inputs": ["a", "a"]}}, "two or more different names"),
        ({"manifold": {}}, "manifold must have noise or extrapolate"),
        ({"mixup": -1}, "mixup"),
    ],
)
def test_a_setting_without_effect_is_refused(settings, reason):
    with pytest.raises(ValidationError, match=reason):
        Training.model_validate(settings)


def test_no_weight_of_own_heads_is_read_as_no_balance_as_an_earlier_version_wrote_it():
    assert Training.model_validate({"auxiliary": 0.0}) == Training(balance="none")
    with pytest.raises(ValidationError, match="greater than 0"):
        Training.model_validate({"auxiliary": 0.0, "balance": "auxiliary"})


@pytest.mark.parametrize("objective", GRADIENT_METHODS)
def test_only_balance_that_works_on_gradients_is_refused_beside_aggregation(objective):
    for balance in ("none", "auxiliary", "gradient_blending"):
        assert Training.model_validate({"objective": objective, "balance": balance})
    for balance in ("ogm_ge", "mmpareto"):
        with pytest.raises(ValidationError, match="changes gradients"):
            Training.model_validate({"objective": objective, "balance": balance})

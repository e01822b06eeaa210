"""How to train, on the command line: what `finetune` and `export` have in common."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

import typer

from flamert import losses, optim
from flamert.cli.choices import made
from flamert.model import Model
from flamert.trainer import Trainer

OPTIMIZERS: dict[str, Callable[..., Any]] = {
    o.__name__.lower(): o
    for o in (
        optim.SGD,
        optim.Adam,
        optim.AdamW,
        optim.Adagrad,
        optim.RMSprop,
        optim.Adamax,
        optim.NAdam,
        optim.RAdam,
        optim.LAMB,
        optim.Lion,
        optim.Adafactor,
    )
}
SCHEDULES: dict[str, Callable[..., Any]] = {
    s.__name__: s
    for s in (
        optim.constant,
        optim.linear,
        optim.cosine,
        optim.step,
        optim.exponential,
        optim.polynomial,
        optim.one_cycle,
        optim.warmup_cosine,
    )
}
LOSSES: dict[str, Callable[..., Any]] = {**losses.LOSSES, "none": lambda: None}

changes = functools.partial(typer.Option, rich_help_panel="The model")
learning = functools.partial(typer.Option, rich_help_panel="Learning")
"""Options under these headings of the help."""

Loss = Annotated[
    str,
    learning("--loss", help=f"{', '.join(LOSSES)}, with options as in cross_entropy:label_smoothing=0.1."),
]
LossOn = Annotated[
    str | None,
    learning("--loss-on", help="The output that the loss is about; by default the first."),
]
OptimizerName = Annotated[
    str,
    learning(
        "--optimizer",
        help=f"{', '.join(OPTIMIZERS)}, with options as in sgd:momentum=0.9,nesterov=true.",
    ),
]
Rate = Annotated[float, learning("--lr", help="Learning rate; with a schedule the highest.")]
ScheduleName = Annotated[
    str,
    learning("--schedule", help=f"{', '.join(SCHEDULES)}, with options as in warmup_cosine:warmup=100."),
]
Patterns = Annotated[
    list[str] | None,
    changes("--trainable", help="Glob pattern of parameters that train, as in 'head.*'. Repeatable."),
]
Head = Annotated[
    int | None,
    changes("--replace-head", help="Let the output be a new linear layer of this width, called head.", min=1),
]
Lora = Annotated[
    list[str] | None,
    changes(
        "--lora",
        help="Glob pattern of layers that get low-rank terms, which then train alone. Repeatable.",
    ),
]
Rank = Annotated[int, changes("--rank", help="Of the low-rank terms.", min=1)]
Alpha = Annotated[float, changes("--alpha", help="Low-rank terms count alpha / rank.")]
ClipNorm = Annotated[float | None, learning("--clip-norm", help="Norm that gradients are scaled down to.")]
Accumulate = Annotated[int, learning("--accumulate", help="Batches whose gradients make one update.", min=1)]
Average = Annotated[
    float | None,
    learning("--ema", help="Decay of moving averages of the weights, which are exported."),
]
Frozen = Annotated[
    bool,
    changes(
        "--inference-form",
        help="BatchNormalization keeps its statistics and nothing drops while training.",
    ),
]
Precision = Annotated[str, learning("--precision", help="fp32, fp16 or bf16: what products and convolutions are computed in.")]
Recompute = Annotated[
    str | None,
    learning("--recompute", help='Less memory for more time: "cheap", or the size that a step may take, such as 2GB.'),
]
Seed = Annotated[int, typer.Option("--seed", help="Of new weights, dropout, the order of examples and what is set aside.")]


class Recipe(NamedTuple):
    """The options above."""

    loss: str
    loss_on: str | None
    optimizer: str
    lr: float
    schedule: str
    trainable: Sequence[str] | None
    clip_norm: float | None
    accumulate: int
    ema: float | None
    inference_form: bool
    precision: str
    seed: int

    def trainer(self, model: Model, updates: int, recompute: str | None = None) -> Trainer:
        """A Trainer of the model, whose schedule ends after so many updates. recompute: as the option has it."""
        updates = max(updates, 1)
        loss = made("--loss", self.loss, LOSSES)
        known = {"lr": self.lr, "max_lr": self.lr, "steps": updates, "warmup": updates // 10}
        rate = made("--schedule", self.schedule, SCHEDULES, **known)
        return Trainer(
            model,
            loss,
            made("--optimizer", self.optimizer, OPTIMIZERS, lr=rate),
            output=self.loss_on,
            trainable=self.trainable or None,
            train_mode=not self.inference_form,
            precision=self.precision,
            clip_norm=self.clip_norm,
            accumulate=self.accumulate,
            seed=self.seed,
            ema=self.ema,
            recompute=True if recompute == "cheap" else recompute,
        )


def adapt(model: Model, recipe: Recipe, head: int | None, lora: Sequence[str] | None, rank: int, alpha: float) -> None:
    """Put in a new head and low-rank terms, where they are wanted."""
    if head is not None:
        name = None if "head.weight" in model.params else "head"
        model.replace_head(recipe.loss_on or model.outputs[0].name, head, name=name, seed=recipe.seed)
    if lora:
        model.add_lora(lora, rank=rank, alpha=alpha, seed=recipe.seed)

"""Teaches a small GPT-2 to write Python: the sources of the standard library, byte by byte.

`python -m models.gpt2.train`
"""

from __future__ import annotations

import flamert as fr
from models import command, text
from models.gpt2.make import CONFIGURATIONS, make

CONTEXT = CONFIGURATIONS["bytes"]["context"]


def main() -> None:
    args = command.arguments(__doc__ or "", "gpt2", epochs=10)
    model = fr.load(make("bytes", args.seed), device=args.device)
    text.learn(model, args, CONTEXT, lr=2e-3, title="gpt2: bytes of the standard library")
    print(text.continued(model, text.PROMPT, 400, context=CONTEXT, seed=args.seed))


if __name__ == "__main__":
    main()

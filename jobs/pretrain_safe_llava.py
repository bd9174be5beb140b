"""Pretraining of the projector (in the tiny world: of everything): `python jobs/pretrain_safe_llava.py --config ...`.

What learns is a matter of the `trainable` section; the code is instruction tuning's.
"""

from __future__ import annotations

from jobs.command_line import main
from jobs.sft_safe_llava import ImitationConfig, run

if __name__ == "__main__":
    main(ImitationConfig, run, __doc__ or "")

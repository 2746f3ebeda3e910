"""The main job on real data: one small T5 and one small ViT, each adapted in four ways; a table and a picture.

Both backbones are pretrained first, on the documentation inside Python and on the digits 0 to 4, once; every run is
an ordinary run of `transfer-run` and is found again the next time.

python scripts/demo.py [FOLDER [KEY=VALUE ...]]      words for all runs, e.g. trainer.max_steps=2
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.run import carry_out
from transfer_run.tables.comparison import markdown, picture, rows_of

PAIRS = (("t5_tiny", "python_docs"), ("vit_tiny", "digits"))
METHODS = {"full": "3e-4", "linear_probe": "3e-2", "lora": "3e-3", "lst": "1e-2"}
"""With a learning rate each, the best on t5_tiny's validation data of some three times apart: models this small want
larger ones than the papers'."""


def main(output: str = "outputs", *more: str) -> None:
    """Carry out the eight runs, print the table, write `demo/table.md` and `demo/accuracy_memory.png`."""
    begin, results = time.perf_counter(), []
    for backbone, dataset in PAIRS:
        for method, rate in METHODS.items():
            words = [f"method={method}", f"backbone={backbone}", f"dataset={dataset}", f"optimizer.lr={rate}", *more]
            print(f"\n$ transfer-run {' '.join(words)}", flush=True)
            folder = carry_out(compose([*words, f"output_dir={output}"]))
            results.append(json.loads((folder / "result.json").read_text(encoding="utf-8")))
    rows = rows_of(results, baseline="full")
    target = Path(output) / "demo"
    target.mkdir(parents=True, exist_ok=True)
    (target / "table.md").write_text(markdown(rows), encoding="utf-8")
    picture(rows, target / "accuracy_memory.png")
    print(f"\n{markdown(rows)}\ntable:   {target / 'table.md'}\npicture: {target / 'accuracy_memory.png'}")
    print(f"time:    {time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])

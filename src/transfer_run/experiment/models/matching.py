"""Which of many known texts asks the same as a new one: a finished run on pairs of texts compares it with each of them.

    "may I swim with a cold?"  x  every question of FAQ.csv  ──model──>  the probability of the last class (`similar`)

The live system of McCreery et al. 2020 (arXiv 2008.13546): as many forward passes as there are known texts, the most
probable one is the answer if it passes a threshold, else there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from transfer_run.backbones.declared import family_of
from transfer_run.backbones.tokenizer import build_tokenizer
from transfer_run.data.reading.labels import check_texts
from transfer_run.data.reading.table import Table, read_files
from transfer_run.data.rows.sampling import Draw
from transfer_run.data.text.encoding import Labelled, TextRows
from transfer_run.data.text.lengths import uses_token_types
from transfer_run.data.text.tokens import padded
from transfer_run.errors import UserError
from transfer_run.experiment.models.model_files import load_model
from transfer_run.methods.base import Method
from transfer_run.methods.work import alone
from transfer_run.run_folder import has_model, model_folder, read_description

QUESTION, ANSWER = "question", "answer"
"""The column of the known texts, and of what is answered to them; another column by its name: `among=FILE:COLUMN`."""


@dataclass(frozen=True)
class Match:
    """A known text beside the new one.

    Attributes:
        row: of the file, counted from 1.
        answer: what the file answers to it; empty without such a column.
        probability: of the model's last class.
    """

    row: int
    text: str
    answer: str
    probability: float


@dataclass(frozen=True)
class Matches:
    """All known texts, most probable first; of equal ones the earlier.

    Attributes:
        called: the class whose probability it is.
        cut: how many pairs have more tokens than the model reads.
    """

    ranked: tuple[Match, ...]
    called: str
    cut: int

    def best(self, threshold: float) -> Match | None:
        """The most probable one; None where it does not reach the threshold."""
        return self.ranked[0] if self.ranked and self.ranked[0].probability >= threshold else None


def match(folder: Path, question: str, among: str, progress: Callable[[int, int], None] | None = None) -> Matches:
    """Compare `question` with every text of a table by the model of the finished run in `folder`.

    Args:
        among: a table as any other (.csv, .jsonl, .txt, ...); its only column, or `question`, or FILE:COLUMN.
        progress: called with the pairs done and all of them.

    Raises:
        UserError: the run made no model of pairs of texts with classes, or the table cannot be read.
    """
    about = _of_pairs(folder)
    if not question.strip():
        raise UserError("There is nothing to match.", where="match", remedy='match="a question"')
    table, column = _known(among)
    method = load_model(model_folder(folder))
    method.to("cuda" if torch.cuda.is_available() else "cpu")
    texts = [str(text) for text in table.rows[column][:]]
    answers = (
        ["" if a is None else str(a) for a in table.rows[ANSWER][:]]
        if ANSWER in table.rows.column_names
        else [""] * len(texts)
    )
    encoder = _encoder(about, [(question, text) for text in texts])
    scores = pair_scores(method, encoder, about["backbone"], progress=progress).tolist()
    order = sorted(range(len(texts)), key=lambda row: -scores[row])
    ranked = tuple(Match(int(table.numbers[row]), texts[row], answers[row], scores[row]) for row in order)
    return Matches(ranked, method.task.label_names[-1], encoder.cut(len(encoder))[0])


def _of_pairs(folder: Path) -> Mapping[str, Any]:
    """What the run's model folder says of itself.

    Raises:
        UserError: it does not give classes to pairs of texts.
    """
    remedy = "name a run that tells pairs of texts apart, for example on dataset=mqp or glue/qqp"
    if not has_model(model_folder(folder)):
        raise UserError("The run made no model.", where=f"run={folder}", remedy=remedy)
    about = read_description(model_folder(folder))
    reads = about["transform"]
    columns = reads.get("text_columns") or ()
    if reads.get("reads") != "text" or len(columns) != 2 or about["task"]["form"] != "classification":
        what = f"{about['task']['form']} of {len(columns)} texts" if columns else f"{about['task']['form']}"
        raise UserError(f"The run's task is {what}, not classes of pairs.", where=f"run={folder}", remedy=remedy)
    return about


def _known(among: str) -> tuple[Table, str]:
    """The table of known texts, and the column in which they stand."""
    whole = Path(among).expanduser().exists() or ":" not in among
    path, _, named = (among, "", "") if whole else among.rpartition(":")
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError("There is no such file.", where=f"among={among}", remedy="name a table of known texts")
    table = read_files([file])
    columns = table.rows.column_names
    column = named or (columns[0] if len(columns) == 1 else QUESTION)
    if column not in columns:
        raise UserError(
            f"The table has no column '{column}' of known texts.",
            where=f"among={among}, which has the columns {', '.join(columns[:12])}",
            nearest=[f"among={path}:{name}" for name in columns[:3]],
            remedy="among=FILE:COLUMN",
        )
    check_texts(table, [column])
    return table, column


def _encoder(about: Mapping[str, Any], pairs: Sequence[tuple[str, str]]) -> Labelled:
    """The pairs as the model reads them."""
    reads, backbone = about["transform"], about["backbone"]
    first, second = reads["text_columns"]
    return Labelled(
        TextRows([{first: one, second: other} for one, other in pairs], [-1] * len(pairs)),
        build_tokenizer(backbone),
        columns=[first, second],
        limit=reads["max_source_length"],
        prompt=reads["prompt"],
        pairs=family_of(backbone).pairs,
    )


@torch.no_grad()
def pair_scores(
    method: Method,
    pairs: Labelled,
    backbone: Mapping[str, Any],
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """The probability (K,) that the model gives to its last class for each of K pairs.

    Args:
        progress: called with the pairs done and all of them.
    """
    method.eval()
    device = next(method.parameters()).device
    kept = {"input_ids", *(["token_type_ids"] if uses_token_types(backbone) else [])}
    found = []
    for start in range(0, len(pairs), batch_size):
        rows = [pairs(Draw(row, 0, scored=False)) for row in range(start, min(start + batch_size, len(pairs)))]
        filler = {"input_ids": pairs.tokenizer.pad_token_id, "token_type_ids": 0}
        batch = {name: padded([row[name] for row in rows], filler[name]).to(device) for name in kept & rows[0].keys()}
        lengths = torch.tensor([len(row["input_ids"]) for row in rows], device=device)
        places = torch.arange(batch["input_ids"].shape[1], device=device)
        batch["attention_mask"] = (places < lengths[:, None]).long()
        found.append(alone(method(batch).float().softmax(-1)[:, -1]).cpu())
        if progress is not None:
            progress(start + len(rows), len(pairs))
    return torch.cat(found)

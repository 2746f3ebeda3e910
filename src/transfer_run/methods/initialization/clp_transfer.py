"""CLP-Transfer: a large model of another language gets a new vocabulary from a small model that already speaks it.

    source (large, old vocabulary) ── body, as it is ─────────────────────────────┐
           └── embeddings of shared tokens ──┐                                    ├─> trained on the new language
    helper (small, new vocabulary) ── cosines of its embeddings ── other tokens ──┘

Ostendorff, Rehm, "Efficient Language Model Training through Cross-Lingual and Progressive Transfer Learning", 2023,
arXiv 2301.09626. The run's backbone is the result: the source's architecture, the helper's vocabulary and tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from transfer_run.backbones.base import Backbone, Batch
from transfer_run.backbones.tokenizer import build_tokenizer
from transfer_run.backbones.weights.settings import TIED, computing, differences
from transfer_run.errors import UserError
from transfer_run.methods.base import Context, Method
from transfer_run.methods.initialization.vocabulary.embeddings import Report, Rule, copied, drawn, rebuilt
from transfer_run.methods.initialization.vocabulary.learning import learning_curve
from transfer_run.methods.initialization.vocabulary.overlap import LEAST, Compare, Overlap, Tokens, overlap, tokens_of
from transfer_run.task import Task

SOURCE, HELPER = "source", "helper"
WEIGHTS = {"negative": "keep", "top_k": None, "temperature": None, "guard": 1e-6}
"""The paper's (all shared tokens, negative similarities too, divided by their sum); the guard catches a sum of zero."""
VOCABULARY = ("vocab_size", "embed_tokens.weight", "wte.weight", "lm_head.weight")
"""Endings of the names of what has a row a token, or says how many rows."""
NAMED = ("bos_token_id", "eos_token_id", "pad_token_id")


class CLPTransfer(Method):
    """Starts from `sources.source` with embeddings for the tokenizer of `backbone.tokenizer`; all of it is trained.

    Args:
        init: how the embeddings of tokens that the source lacks are made: clp, or a control: `random` (all of them are
            drawn, shared ones too), `copy_overlap_random_rest`.
        weights: of clp, see `Rule`: `negative`, `top_k`, `temperature`, `guard`.
        head: of a model whose head has weights of its own: transfer (by the same weights) | random (as the released
            code leaves it). `auto` is transfer, or tied where the backbone ties them; `tied` asks for that.
        overlap: are tokens shared that stand for the same text, or those of the same string (`exact`)?
        block_rows: rows of missing tokens that are worked at together.
        start_score: score the validation data before the first step, too.
    """

    def __init__(
        self,
        backbone: Backbone,
        task: Task,
        *,
        init: Literal["clp", "random", "copy_overlap_random_rest"] = "clp",
        weights: Mapping[str, Any] = WEIGHTS,
        head: Literal["auto", "tied", "transfer", "random"] = "auto",
        overlap: Compare = "text",
        block_rows: int = 4096,
        start_score: bool = True,
    ) -> None:
        super().__init__(backbone, task)
        self.train_backbone()
        self.init, self.overlap, self.block_rows, self.start_score = init, overlap, block_rows, start_score
        self.rule = Rule(**{**WEIGHTS, **weights})
        self.tied = self._output.weight is self._input.weight
        if self.tied != (head == "tied") and not (head == "auto" or (not self.tied and head != "tied")):
            raise UserError(
                f"The backbone's head {'is its embedding' if self.tied else 'has weights of its own'}.",
                where=f"method.head={head}",
                remedy=f"method.head=auto, or backbone.architecture.{TIED}={str(not self.tied).lower()}",
            )
        self.head = "tied" if self.tied else "random" if head == "random" else "transfer"
        self.results: dict[str, Any] = {}
        self._load: Callable[[str], Method] | None = None

    @property
    def _input(self) -> Any:
        return self.backbone.model.get_input_embeddings()

    @property
    def _output(self) -> Any:
        return self.backbone.model.get_output_embeddings()

    # ---- the source and the helper
    def take_sources(self, load_source: Callable[[str], Method]) -> None:
        """They are there while the embeddings are made, not while these are trained; a plan looks at their shapes."""
        if self._input.weight.is_meta:
            self._load = load_source
            self._check_source(load_source(SOURCE))

    def _check_source(self, source: Method) -> None:
        """The source must be the backbone but for its vocabulary.

        Raises:
            UserError: naming what differs.
        """
        theirs, ours = self._settings(source), self._settings(self)
        unlike = [f"{name} is {one!r} there, {two!r} here" for name, one, two in differences(theirs, ours)]
        here, there = self._body(self), self._body(source)
        unlike += [
            f"{name} is only {'here' if name in here else 'there'}" for name in sorted(here.keys() ^ there.keys())
        ]
        unlike += [
            f"{name} is {tuple(there[name].shape)} there, {tuple(here[name].shape)} here"
            for name in sorted(here.keys() & there.keys())
            if here[name].shape != there[name].shape
        ]
        if unlike:
            raise UserError(
                f"The source is another model than the backbone: {'; '.join(unlike[:4])}.",
                where=f"sources.{SOURCE}, backbone={self.backbone.config.get('name')}",
                remedy="choose the source's backbone; only backbone.architecture.vocab_size and the numbers of special "
                "tokens are the new tokenizer's",
            )

    @staticmethod
    def _settings(method: Method) -> dict[str, Any]:
        config = getattr(method.backbone.model, "config", None)
        said = {} if config is None else computing(config)
        kept = {key: value for key, value in said.items() if key not in VOCABULARY and not key.endswith("token_id")}
        return {"model_type": getattr(config, "model_type", None), **kept}

    @staticmethod
    def _body(method: Method) -> dict[str, Tensor]:
        state: dict[str, Tensor] = method.backbone.model.state_dict()
        return {name: tensor for name, tensor in state.items() if not name.endswith(VOCABULARY)}

    # ---- the build
    def prepare(self, context: Context) -> None:
        """Copy the body, make the embeddings, and score what came out before it is trained."""
        source = context.load_source(SOURCE)
        self._check_source(source)
        own, theirs = build_tokenizer(dict(self.backbone.config)), build_tokenizer(dict(source.backbone.config))
        self._check_numbers(own)
        new, old = tokens_of(own), tokens_of(theirs)
        found = overlap(new, old, self.overlap)
        self._check_overlap(found, new, old)
        with torch.no_grad():
            body = self.backbone.model.state_dict()
            for name, tensor in self._body(source).items():
                body[name].copy_(tensor)
            report = self._fill(source, found, context)
        del source
        self._tell(found, new, old, report, context)
        if self.start_score and "validation" in context.sizes:
            start = self._scored(context)
            self.results["metrics"] = {f"start/{name}": value for name, value in start.items()}
            context.log("before the first step: " + ", ".join(f"{n} {v:.4g}" for n, v in start.items()))

    def _fill(self, source: Method, found: Overlap, context: Context) -> Report:
        """Write the rows of both tables."""
        model: Any = source.backbone.model
        tables = [model.get_input_embeddings().weight]
        places = [self._input.weight]
        if self.head == "transfer":
            tables.append(model.get_output_embeddings().weight)
            places.append(self._output.weight)
        made, report = self._made(tables, found, context)
        generator = torch.Generator().manual_seed(context.seed)
        if self.head == "random":
            made.append(drawn(model.get_output_embeddings().weight, len(self._output.weight), generator))
            places.append(self._output.weight)
        for place, table in zip(places, made, strict=True):
            place.copy_(table)
        return report

    def _made(self, tables: Sequence[Tensor], found: Overlap, context: Context) -> tuple[list[Tensor], Report]:
        rows, generator = len(self._input.weight), torch.Generator().manual_seed(context.seed)
        if self.init == "random":
            return [drawn(table, rows, generator) for table in tables], Report()
        if self.init == "copy_overlap_random_rest":
            made = [copied(table, rows, found.shared) for table in tables]
            lost = torch.tensor(found.missing, dtype=torch.int64, device=made[0].device)
            for out, table in zip(made, tables, strict=True):
                out[lost] = drawn(table, len(lost), generator)
            return made, Report()
        helper: Any = context.load_source(HELPER).backbone
        self._check_helper(helper)
        return rebuilt(
            tables, helper.model.get_input_embeddings().weight, rows, found.shared, found.missing, rule=self.rule,
            block=self.block_rows,
            follow=lambda blocks: context.work.follow("blocks of tokens", blocks, len(blocks)),
        )  # fmt: skip

    def _check_helper(self, helper: Any) -> None:
        """The helper's rows are read by the numbers of the run's tokenizer.

        Raises:
            UserError: it has another tokenizer.
        """
        own = build_tokenizer(dict(self.backbone.config)).get_vocab()
        if build_tokenizer(dict(helper.config)).get_vocab() != own:
            raise UserError(
                "The helper has another tokenizer than the run, so its rows are those of other tokens.",
                where=f"sources.{HELPER}, backbone.tokenizer={self.backbone.config.get('tokenizer')}",
                remedy="backbone.tokenizer of both the same: the folder or hub name of the helper's",
            )

    def _check_numbers(self, tokenizer: Any) -> None:
        """The model's special tokens must be the tokenizer's: it would stop at another one's number.

        Raises:
            UserError: with the words that say so.
        """
        config = self.backbone.model.config
        words = [
            f"backbone.architecture.{name}={getattr(tokenizer, name)}"
            for name in NAMED
            if getattr(tokenizer, name, None) is not None
            and getattr(config, name, None) != getattr(tokenizer, name)
            and not (name == "pad_token_id" and getattr(config, name, None) is None)
        ]
        if words:
            raise UserError(
                "The backbone's special tokens have other numbers than the tokenizer's.",
                where=f"backbone.tokenizer={self.backbone.config.get('tokenizer')}",
                remedy=" ".join(words),
            )

    def _check_overlap(self, found: Overlap, new: Tokens, old: Tokens) -> None:
        if self.init != "random" and found.share < LEAST:
            raise UserError(
                f"Of the {len(new.names)} tokens the source has {len(found.shared)}: the two tokenizers "
                f"({new.kind.replace('_', ' ')}, {old.kind.replace('_', ' ')}) write words in two ways.",
                where=f"method.overlap={self.overlap}, backbone.tokenizer",
                remedy="method.overlap=text" if self.overlap == "exact" else "another source, or method=pretrain",
            )

    def _tell(self, found: Overlap, new: Tokens, old: Tokens, report: Report, context: Context) -> None:
        spare = len(self._input.weight) - len(new.names)
        self.results |= {
            "tokens": {
                "new": len(new.names), "old": len(old.names), "shared": len(found.shared),
                "missing": len(found.missing), "by_role": found.by_role, "spare_rows": spare,
            },
            "tokenizers": {"new": new.kind, "old": old.kind},
        }  # fmt: skip
        context.log(
            f"{len(found.shared)} of {len(new.names)} tokens are the source's ({100 * found.share:.1f} %), "
            f"{found.by_role} of them special tokens by their role; {len(found.missing)} are made"
            + (f"; {spare} rows belong to no token: the mean" if spare else "")
        )
        if self.init == "clp" and found.missing and self.rule.temperature is None:
            self.results |= {"least_sum": report.least_sum, "guarded_rows": report.guarded}
            context.log(
                f"the smallest |sum| of similarities is {report.least_sum:.3g}; {report.guarded} rows, whose "
                "similarities nearly cancel, are means over the positive ones alone"
            )

    @torch.no_grad()
    def _scored(self, context: Context) -> dict[str, float]:
        scores, training = self.form.scores(context.data, "validation"), self.training
        self.eval()
        for batch in context.work.follow("validation", context.batches("validation", context.batch_size)):
            self.score(batch, scores)
        self.train(training)
        return scores.compute()

    # ---- the plan
    def rehearse(self, batch: Batch) -> Sequence[str]:
        """The source and the helper beside the model; blocks of as many missing tokens as there can be."""
        lines = ["how many tokens are shared: half of them are taken for that"]
        if self._load is None:
            return ["all of it"]
        device, out = self._input.weight.device, self._input.weight
        source = _alike(self._load(SOURCE), device)
        tables = [source["input"]] * (2 if self.head == "transfer" else 1)
        if self.init == "clp":
            helper = _alike(self._load(HELPER), device)
            half = max(1, min(len(out), len(source["input"])) // 2)
            missing = range(half, len(out))
            with torch.no_grad():
                rebuilt(tables, helper["input"], len(out), dict(zip(range(half), range(half), strict=True)),
                        list(missing)[: self.block_rows], rule=self.rule, block=self.block_rows)  # fmt: skip
            del helper
        del source
        if self.start_score:
            with torch.no_grad():
                self.loss(batch)
        return lines

    def conclude(self, context: Context) -> dict[str, Any]:
        """The loss against the tokens that were seen: `learning.csv` and `learning.png` in the run's folder."""
        start = (self.results.get("metrics") or {}).get(f"start/{self.task.headline}")
        self.results["learning"] = learning_curve(context, self.task.headline, start)
        return self.results


def _alike(model: Method, device: torch.device) -> dict[str, Tensor]:
    """Tensors of a model's shapes and types, as a plan needs them; its embedding under `input`."""
    table = model.backbone.model.get_input_embeddings().weight
    tensors = {name: torch.empty_like(p, device=device) for name, p in model.named_parameters() if p is not table}
    return {**tensors, "input": torch.empty_like(table, device=device)}

"""Settings of scoring runs."""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Literal

from cqa.config import MOST_TOKENS, require, same_setting, setting
from cqa.data.tables import parse_columns
from cqa.score.marginal import NEWLINE, Marginal, read_null2
from cqa.score.shard import read_shard
from cqa.server.address import USUAL_KEY, Server, url_problem
from cqa.stats.config import AnalysisConfig

Unit = Literal["sum", "token", "byte", "char"]


EngineName = Literal["cqa", "transformers"]
MOST_ACTORS = 10_000
MOST_SAMPLES = 100_000  # of a prompt
MOST_REQUESTS = 256  # to a server at a time: a thread and a connection each
EXPECTED_REQUESTS = f"concurrency from 1 to {MOST_REQUESTS}"


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(AnalysisConfig):
    """One scoring run: the base once, then every adapter on the same resident base."""

    model: str = setting(
        "Base model: a folder in Hugging Face format, or a hub id; with --server its tokenizer "
        "alone is read.",
        group="Model and data",
        path_unless=(),
    )
    adapter: tuple[Path, ...] = setting(
        "PEFT adapter to score beside the base.",
        (),
        group="Model and data",
        shown="the base alone, if there is no --run either",
        repeat=True,
    )
    run: tuple[Path, ...] = setting(
        "Training run whose epochs are scored; runs that differ in --seed only are one adapter "
        "an epoch, with a seed effect.",
        (),
        group="Model and data",
        shown="none",
        repeat=True,
    )
    epochs: tuple[int, ...] = setting(
        "Epochs of --run, such as 2,3,5 or 1-6,12.",
        (),
        group="Model and data",
        shown="all of them",
        ranges=True,
    )
    other_base: bool = setting(
        "Score adapters that were trained on another base too.", False, group="Model and data"
    )
    pairs: tuple[Path, ...] = setting(
        "Items with a good and a bad option, or with several: JSON Lines or a table.",
        (),
        group="Model and data",
        shown="none; --pairs or --continuations is needed",
        repeat=True,
    )
    choose_on: Path | None = setting(
        "Pairs that choose the adapter which the verdict is about and are not reported: the tests "
        "then pay for this one adapter only.",
        None,
        group="Statistics",
        shown="chosen on the items themselves, for which the tests pay",
    )
    continuations: tuple[Path, ...] = setting(
        "Contexts with their true continuation: JSON Lines or a table.",
        (),
        group="Model and data",
        shown="none",
        repeat=True,
    )
    out: Path = setting(
        "Folder for scores.jsonl, items.jsonl, meta.json and summary.json.", group="Output"
    )
    shard: str | None = setting(
        "Part i/K of the items, dealt by their ids, such as 3/8; cqa-fast merge makes one folder "
        "of the K, and the statistics.",
        None,
        group="Output",
        shown="all items",
    )
    columns: tuple[str, ...] = setting(
        "Keys and the columns of the files they are read from, such as good=chosen,bad=rejected.",
        (),
        group="Text",
        shown="keys are columns",
    )
    boundary: Literal["split", "joint"] = setting(
        "How context and option meet: encoded separately, or at once (a sensitivity check).",
        "split",
        group="Text",
    )
    null_token: str | None = setting(
        "Token that stands for no context.",
        None,
        group="Text",
        shown="BOS, else <|endoftext|>, else EOS",
    )
    template: str = setting(
        "How contexts become text: plain, chat (the tokenizer's template) or a Jinja file, which "
        "has messages (of role and content), add_generation_prompt, bos_token and eos_token.",
        "plain",
        group="Text",
        path_unless=("plain", "chat"),
    )
    allow_special: bool = setting(
        "Take control tokens that are written in a text as such; else such texts are refused.",
        False,
        group="Text",
    )
    too_long: Literal["refuse", "drop"] = setting(
        "What to do with items over the model's positions; those left out are listed.",
        "refuse",
        group="Text",
    )
    on_error: Literal["stop", "skip"] = setting(
        "What to do with items that are malformed or cannot be encoded: refuse all before any "
        "work, or leave them out, each with its reason in rejected.jsonl.",
        "stop",
        group="Text",
    )
    score_eos: bool = setting("Score the end token after each option too.", False, group="Text")
    plan: Path | None = setting(
        "Analysis plan (cqa-fast plan): its settings are taken where none is given here, and its "
        "digest is kept before anything is scored.",
        None,
        group="Statistics",
        shown="none",
    )
    tokens: bool = setting(
        "Write each token's id, place in the text and log-probability.", False, group="Output"
    )
    summary: bool = setting(
        "Compute the statistics; without them memory does not grow with the files.",
        True,
        group="Output",
    )
    nulls: int = setting(
        "Null contexts after which each option is scored too: 2, or 1 for a third less work on "
        "long options; the reading with the second null is then n/a.",
        2,
        group="Text",
    )
    null2: str = setting(
        "Second null context: newline, which follows the null token; or marginal:K, the mean "
        "probability after the contexts of K other items of the group (marginal:K:SEED: others).",
        NEWLINE,
        group="Text",
    )
    batch_tokens: int | None = setting(
        "Most tokens in one pass; results are bit-identical for every value.",
        None,
        group="Memory and device",
        shown="4096; on CUDA about 32768, in whole blocks of rows",
    )
    engine: EngineName = setting(
        "What computes: cqa, or transformers for architectures that cqa lacks (adapters through "
        "PEFT, one text at a time, not bit-identical for every --batch-tokens).",
        "cqa",
        group="Memory and device",
    )
    device: Literal["auto", "cpu", "cuda"] = setting(
        "Where to compute; auto is CUDA if a GPU is there.", "auto", group="Memory and device"
    )
    dtype: Literal["auto", "fp32", "bf16"] = setting(
        "Dtype of the weights; auto is bf16 on CUDA and fp32 on a CPU.",
        "auto",
        group="Memory and device",
    )
    shard_base: bool = setting(
        "Spread the weights of the base over the processes that torchrun has started: for a base "
        "larger than a card. Each gathers a layer when it needs it; results are the same.",
        False,
        group="Memory and device",
    )
    ray: str | None = setting(
        "Compute on a Ray cluster, all of whose machines see the folder of --out: local (it is "
        "started here), auto, or an address.",
        None,
        group="Memory and device",
        shown="in this process",
    )
    ray_actors: int = setting(
        "Actors of --ray that hold the base: a GPU each where there are some, else a CPU.",
        2,
        group="Memory and device",
    )
    server: str | None = setting(
        "Address of a server of completions that has the weights and scores token ids (vLLM, "
        "SGLang and others), such as http://localhost:8000; it is probed before any work.",
        None,
        group="Server",
        shown="none",
    )
    served_model: str | None = setting(
        "What the server calls the model.", None, group="Server", shown="none"
    )
    server_key_env: str | None = setting(
        "Environment variable that holds the server's key.",
        None,
        group="Server",
        shown=f"{USUAL_KEY} if it is set and goes out encrypted or to this machine",
    )
    concurrency: int = setting("Requests to the server at a time.", 4, group="Server")

    @property
    def marginal(self) -> Marginal | None:
        """The contexts of other items that stand for the second null, if any do."""
        return read_null2(self.null2)

    @property
    def at_server(self) -> Server | None:
        """The server that scores, if one does."""
        if self.server is None or self.served_model is None:
            return None
        return Server(self.server, self.served_model, self.server_key_env, self.concurrency)

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        self._check_server()
        require(bool(self.pairs or self.continuations), "--pairs or --continuations", "neither")
        require_batch(self.batch_tokens)
        require(self.nulls in (1, 2), "nulls of 1 or 2", self.nulls)
        require(self.marginal is None or self.nulls == 2, "--null2 with --nulls 2", self.nulls)
        parse_columns(self.columns)
        if self.shard is not None:
            read_shard(self.shard)
        self._check_ray()
        if self.shard_base:
            require(self.ray is None, "--shard-base without --ray", self.ray)
            require(self.server is None, "--shard-base without --server", self.server)
            require(self.engine == "cqa", "--shard-base with --engine cqa", self.engine)
        require(
            self.choose_on is None or (bool(self.pairs) and self.choose == "best"),
            "--choose-on with --pairs and --choose best",
            f"--choose {self.choose}" if self.pairs else "no --pairs",
        )
        require(bool(self.run) or not self.epochs, "--run with --epochs", "no --run")
        require(all(e >= 1 for e in self.epochs), "epochs from 1", self.epochs)
        require(len(set(self.epochs)) == len(self.epochs), "each epoch once", self.epochs)

    def _check_ray(self) -> None:
        require_ray(self.ray, self.ray_actors)
        if self.ray is not None:
            require(self.shard is None, "--ray without --shard", self.shard)
            require(self.server is None, "--ray without --server", self.server)

    def _check_server(self) -> None:
        require(
            (self.server is None) == (self.served_model is None),
            "--server and --served-model together",
            "one of them",
        )
        require_concurrency(self.concurrency)
        if self.server is None:
            require(self.server_key_env is None, "--server with --server-key-env", "no --server")
            return
        require_address(self.server)
        got = "--adapter" if self.adapter else "--run"
        expected = "the model that the server serves alone"
        require(not (self.adapter or self.run), expected, got)
        for name in ("engine", "device", "dtype"):
            default, value = ScoreConfig.__dataclass_fields__[name].default, getattr(self, name)
            require(value == default, f"--server without --{name}", value)


@dataclass(frozen=True, kw_only=True)
class PlanConfig(AnalysisConfig):
    """An analysis that is fixed before anything is scored."""

    pairs: tuple[Path, ...] = same_setting(ScoreConfig, "pairs", default=MISSING, shown=None)
    continuations: tuple[Path, ...] = same_setting(ScoreConfig, "continuations")
    choose_on: Path | None = same_setting(ScoreConfig, "choose_on")
    epochs: tuple[int, ...] = setting(
        "Epochs of every run that will be scored, such as 2,3,5 or 1-6,12.",
        (),
        group="Model and data",
        shown="none",
        ranges=True,
    )
    adapters: tuple[str, ...] = setting(
        "Names of other adapters that will be scored.", (), group="Model and data", shown="none"
    )
    columns: tuple[str, ...] = same_setting(ScoreConfig, "columns")
    boundary: Literal["split", "joint"] = same_setting(ScoreConfig, "boundary")
    null_token: str | None = same_setting(ScoreConfig, "null_token")
    template: str = same_setting(ScoreConfig, "template")
    score_eos: bool = same_setting(ScoreConfig, "score_eos")
    out: Path = setting("File to write, such as plan.json.", group="Output")

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        require(bool(self.pairs), "--pairs", "none")
        require(bool(self.epochs or self.adapters), "--epochs or --adapters", "neither")
        require(all(e >= 1 for e in self.epochs), "epochs from 1", self.epochs)
        parse_columns(self.columns)


@dataclass(frozen=True, kw_only=True)
class PrescreenConfig:
    """Which decision points a base model has yet to learn (§3.3.1)."""

    model: str = same_setting(ScoreConfig, "model")
    pairs: tuple[Path, ...] = setting(
        "Decision points, with a good and a bad option or with several: JSON Lines.",
        group="Model and data",
        repeat=True,
    )
    out: Path = setting(
        "Folder for prescreen.jsonl, selected.jsonl and the scores.", group="Output"
    )
    budget: int | None = setting(
        "How many of the most valuable points selected.jsonl gets.",
        None,
        group="Output",
        shown="no selected.jsonl",
    )
    high: float = setting(
        "Probability among a point's options from which the model counts as decided.",
        0.8,
        group="Study",
    )
    per: Unit = setting(
        "What probabilities compare: log-probability summed over tokens, or its mean.",
        "sum",
        group="Study",
    )
    shard: str | None = same_setting(ScoreConfig, "shard")
    columns: tuple[str, ...] = same_setting(ScoreConfig, "columns")
    template: str = same_setting(ScoreConfig, "template")
    allow_special: bool = same_setting(ScoreConfig, "allow_special")
    too_long: Literal["refuse", "drop"] = same_setting(ScoreConfig, "too_long")
    batch_tokens: int | None = same_setting(ScoreConfig, "batch_tokens")
    device: Literal["auto", "cpu", "cuda"] = same_setting(ScoreConfig, "device")
    dtype: Literal["auto", "fp32", "bf16"] = same_setting(ScoreConfig, "dtype")
    ray: str | None = same_setting(ScoreConfig, "ray")
    ray_actors: int = same_setting(ScoreConfig, "ray_actors")

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        require(bool(self.pairs), "--pairs", "none")
        require_ray(self.ray, self.ray_actors)
        require(self.ray is None or self.shard is None, "--ray without --shard", self.shard)
        require_batch(self.batch_tokens)
        require(self.budget is None or self.budget >= 1, "budget of at least 1", self.budget)
        parse_columns(self.columns)
        if self.shard is not None:
            read_shard(self.shard)
        require(0.5 < self.high <= 1, "high above 0.5, up to 1", self.high)


def require_ray(ray: str | None, actors: int) -> None:
    """Refuse a cluster without a name, and a number of actors out of range."""
    require(1 <= actors <= MOST_ACTORS, f"ray-actors from 1 to {MOST_ACTORS:,}", actors)
    require(ray != "", "--ray to be local, auto or an address", "an empty text")


def require_address(server: str) -> None:
    """Refuse what is no address of a server."""
    expected = "server to be an address such as http://localhost:8000"
    require((problem := url_problem(server)) is None, expected, problem)


def require_concurrency(n_requests: int) -> None:
    """Refuse a number of requests at a time out of range."""
    require(1 <= n_requests <= MOST_REQUESTS, EXPECTED_REQUESTS, n_requests)


def require_sampling(
    *, n_samples: int, max_tokens: int, temperature: float, top_p: float, seed: int
) -> None:
    """Refuse settings of sampling out of range."""
    require(1 <= n_samples <= MOST_SAMPLES, f"samples from 1 to {MOST_SAMPLES:,}", n_samples)
    expected = f"max-tokens from 1 to {MOST_TOKENS:,}"
    require(1 <= max_tokens <= MOST_TOKENS, expected, max_tokens)
    require(0 <= temperature < math.inf, "temperature from 0, finite", temperature)
    require(0 < top_p <= 1, "top-p above 0, up to 1", top_p)
    require(0 <= seed < 2**64, "seed from 0 to below 2^64", seed)


def require_batch(batch_tokens: int | None) -> None:
    """Refuse a token budget out of range."""
    expected = f"batch-tokens from 1 to {MOST_TOKENS:,}"
    require(batch_tokens is None or 1 <= batch_tokens <= MOST_TOKENS, expected, batch_tokens)

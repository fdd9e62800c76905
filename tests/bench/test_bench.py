"""The benchmark command: its numbers hang together, and what cannot take part is named."""

import json
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from cqa_fast.main import main
from hostile import STRINGS

from cqa.bench import against, run, table
from cqa.bench.against import AGREEMENT, Peer, compare_scores, compare_steps
from cqa.bench.config import BenchConfig, Job, Window
from cqa.bench.counts import pass_flops
from cqa.bench.peer_process import PeerError, PeerProcess, Reply
from cqa.bench.results import ComparedPeer, OpLine, RouteLine, Unmeasured
from cqa.bench.score import null_tokenizer, random_items
from cqa.bench.shapes import CONFIGS, BenchModel, hf_config
from cqa.bench.timing import Stopwatch, Timing, compare_interleaved
from cqa.bench.trace import summarise_spans
from cqa.errors import ConfigError
from cqa.escape import for_terminal
from cqa.kernels.backend import fastest
from cqa.layout import pack_documents, pack_trees
from cqa.model.config import parse_config
from cqa.model.load import weights_bytes
from cqa.score.prefix_batch import passes
from cqa.text import named

CPU = torch.device("cpu")
SMALL = ["--window", "20+12,5+9", "--job", "3x30+2x6*2", "--seconds", "0.001", "--steps", "1"]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """What the command prints with --json on the demo shape, what it writes, and what it has."""
    kept = []
    real = run.bench

    def keep(config, **options):
        kept.append(real(config, **options))
        return kept[0]

    out = tmp_path_factory.mktemp("bench") / "folder" / "bench.json"
    arguments = ["bench", "--device", "cpu", *SMALL, "--json", "--out", str(out)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "bench", keep)
        result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "measuring kernel: ops" in result.stderr
    return json.loads(result.stdout), json.loads(out.read_text("utf-8")), kept[0]


@pytest.fixture(scope="module")
def measured(ran):
    """What is printed, and what is written."""
    return ran[:2]


def test_the_file_holds_what_is_printed(measured):
    printed, written = measured
    assert printed == written
    assert written["format"] == 1
    assert written["windows"] == ["20+12,5+9"]
    assert written["jobs"] == ["3x30+2x6*2"]
    assert {"name", "versions", "flags", "code", "cpu_threads"} <= written["device"].keys()
    assert {"torch", "triton", "unsloth", "lm_eval"} <= written["device"]["versions"].keys()


def test_rates_are_work_over_time_and_fractions_are_of_this_run(measured):
    data, _ = measured
    gemm = data["ceilings"]["gemm_flops_per_s"]
    copy = data["ceilings"]["copy_bytes_per_s"]
    for result in data["kernel"]["ops"]:
        assert "problem" not in result, result
        seconds = result["time"]["median_s"]
        assert result["flops_per_s"] == pytest.approx(result["flops"] / seconds)
        assert result["of_gemm"] == pytest.approx(result["flops"] / seconds / gemm)
        assert result["of_copy"] == pytest.approx(result["bytes"] / seconds / copy)
        assert result["of_ceiling"] == pytest.approx(max(result["of_gemm"], result["of_copy"]))
        assert result["bytes"] > 0
    (step,) = data["step"]["windows"]
    assert step["n_tokens"] == 46
    assert step["n_labels"] == 21
    assert step["mfu"] == pytest.approx(step["flops"]["total"] / step["time"]["median_s"] / gemm)
    assert step["tokens_per_s"] == pytest.approx(46 / step["time"]["median_s"])
    assert step["phases_s"].keys() == {"forward", "head", "backward", "optimizer"}
    assert all(seconds > 0 for seconds in step["phases_s"].values())
    assert step["time"]["n"] == 1
    (job,) = data["score"]["jobs"]
    # a context of 30, two options of 6 after it, and the same after two null contexts (1 and 2)
    assert job["tokens_fed"] == 2 * (3 * (30 + 3 * 2 * 5) + 1 + 2)
    assert job["tokens_scored"] == 2 * 3 * 3 * 2 * 6
    assert job["mfu"] == pytest.approx(job["flops"] / job["time"]["median_s"] / gemm)


def test_every_op_is_measured_both_ways(measured):
    data, _ = measured
    names = {(r["op"], r["way"]) for r in data["kernel"]["ops"]}
    for op in ("product qkv", "product down", "swiglu+down shrink", "attention", "head and loss"):
        assert {(op, "forward"), (op, "backward")} <= names
    assert ("adamw", "forward") in names
    for op in ("dB gate_up", "dA down"):
        assert {(op, "forward"), (op, "by the library")} <= names
    products = data["kernel"]["products"]
    assert {(r["group"], r["k"]) for r in products} >= {("q+k+v", 192), ("q+k+v", 304)}
    assert all(r["plain_ratio"] == 1 for r in products if r["k"] in (192, 512))


def test_text_for_people_has_every_table(ran):
    _, _, data = ran
    text = table.bench_text(data)
    for heading in ("tokens/s", "of product", "to plain", "beside the model"):
        assert heading in text
    assert max(map(len, text.splitlines())) <= 110
    wrong = replace(data, lines={"kernel": {"ops": [Unmeasured(OpLine("rope of q"), "off by 1")]}})
    assert "rope of q  not measured: off by 1" in table.bench_text(wrong)


@pytest.mark.parametrize("name", STRINGS, ids=lambda name: ascii(name)[:20])
def test_a_name_breaks_no_line_of_the_text(ran, name):
    _, _, data = ran

    def text_of(name: str) -> str:
        lines = {"kernel": {"ops": [Unmeasured(OpLine("rope"), f"off by {name}")]}}
        settings = data.settings | {"model": f"m{name}"}
        return table.bench_text(replace(data, settings=settings, lines=lines))

    text = text_of(name)
    assert len(text.splitlines()) == len(text_of("1").splitlines())
    assert text.startswith(f"{named(f'm{name}')}, ")
    assert for_terminal(text, keep="\n") == text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--window", "7"], "expected a window such as 0+700,1884+112, got: 7"),
        (["--window", "7+0"], "expected samples of at least 2 tokens with a response, got: 7+0"),
        (["--job", "4x5+6"], "expected a job such as 40x800+2x100*8, got: 4x5+6"),
        (["--job", "0x5+2x3"], "expected numbers of at least 1 in a job, got: 0x5+2x3"),
        (["--levels", "kernels"], "expected levels among kernel,step,score, got: kernels"),
        (["--seconds", "0"], "expected seconds above 0, up to 3600, got: 0.0"),
        (["--window", "0+1025"], "expected at most 1024 tokens a text, got: 1025"),
    ],
)
def test_bad_settings_are_usage_errors(arguments, message):
    result = CliRunner().invoke(main, ["bench", "--device", "cpu", *arguments])
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""


def test_windows_and_jobs_are_written_as_they_are_read():
    for text in ("0+700,1884+112", "5+6"):
        assert str(Window.parse(text)) == text
    for text in ("40x800+2x100*8", "1x1+1x8192"):
        assert str(Job.parse(text)) == text


@pytest.mark.parametrize(("shape", "billions"), [("qwen2.5-7b", 7.616), ("qwen2.5-0.5b", 0.494)])
def test_shapes_have_their_published_size(shape, billions):
    config = parse_config(CONFIGS[shape], shape)
    n_bytes = weights_bytes(config, {}, torch.float32, CPU)
    padding = 15 * config.n_layers * (config.n_heads + 2 * config.n_kv_heads) * config.head_dim
    assert (n_bytes / 4 - padding) / 1e9 == pytest.approx(billions, abs=0.001)
    assert hf_config("demo")["hidden_size"] == 192


def test_weights_are_a_function_of_their_names():
    bench_model = BenchModel("demo", None, 8, "cpu", torch.float32)
    one, two = bench_model.decoder(), bench_model.decoder()
    assert torch.equal(one.layers[3].down.weight, two.layers[3].down.weight)
    assert not torch.equal(one.layers[3].down.weight, one.layers[2].down.weight)
    assert BenchModel.told(json.loads(json.dumps(bench_model.settings()))) == bench_model


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")  # of PEFT with transformers
def test_training_flops_are_what_torch_counts_for_the_same_model():
    from peft import LoraConfig, get_peft_model
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoConfig, AutoModelForCausalLM

    raw = hf_config("demo") | {"num_hidden_layers": 2, "layer_types": None, "vocab_size": 300}
    config = parse_config(raw, "test")
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**raw), attn_implementation="eager"
    )
    model.enable_input_require_grads()  # so that the first layer's products have an input gradient
    targets = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]
    model = get_peft_model(model, LoraConfig(r=8, target_modules=targets))
    ids = torch.arange(50)[None]
    with FlopCounterMode(display=False) as counter:
        logits = model(ids, use_cache=False).logits
        logits.sum().backward()
    counts = counter.get_flop_counts()
    by_op = {str(op): n for op, n in counts["Global"].items()}
    # some versions form the angles of the rotation by a product
    angles = sum(sum(ops.values()) for name, ops in counts.items() if name.endswith("rotary_emb"))
    everything = pack_documents([(tuple(range(51)), (True,) * 51)])  # 50 rows that predict
    batch = replace(everything, input_ids=everything.input_ids[:50])
    flops = pass_flops(config, batch, 8, training=True)
    products = sum(n for op, n in by_op.items() if op.endswith((".mm", ".addmm")))
    assert flops.frozen + flops.lora + flops.head == products
    # eager attention forms every pair, forward and for both gradients; ours counts causal ones and
    # the scores formed again
    attended = sum(n for op, n in by_op.items() if op.endswith(".bmm")) - angles
    causal = sum(range(1, 52)) + sum(range(1, 51))  # the last layer keeps 50 of the 51 rows
    assert attended == 3 * 2 * 4 * 192 * 50 * 50
    assert flops.attention == round(3.5 * 4 * 192 * causal)


def test_scoring_flops_by_hand():
    config = parse_config(hf_config("demo"), "demo")
    (item,) = random_items(Job(1, 10, 1, 4), config.vocab_size)
    ((_, prefixes),) = passes([item], null_tokenizer(), 4096)
    batch, _ = pack_trees(prefixes.trees())
    flops = pass_flops(config, batch, 0, training=False)
    rows, kept = 13 + (1 + 3) + (2 + 3), (1 + 3) * 3  # the option's last token is not fed
    d, wide, kv = 192, 512, 64
    assert flops.frozen == 2 * (
        6 * rows * d * (d + 2 * kv) + (5 * rows + kept) * (d * d + 3 * d * wide)
    )
    assert flops.head == 2 * d * 4096 * 12
    assert flops.lora == 0
    pairs = 13 * 14 // 2 + 4 * 5 // 2 + 5 * 6 // 2
    last = (10 + 11 + 12 + 13) + (1 + 2 + 3 + 4) + (2 + 3 + 4 + 5)
    assert flops.attention == 4 * d * (5 * pairs + last)


def test_a_window_limits_the_counted_scores():
    config = replace(parse_config(hf_config("demo"), "demo"), windows=(4,) * 6)
    batch = pack_documents([(tuple(range(11)), (True,) * 11)])
    flops = pass_flops(config, batch, 0, training=False)
    assert flops.attention == 4 * 192 * (5 * (1 + 2 + 3 + 4 * 8) + (1 + 2 + 3 + 4 * 7))


def test_calls_are_timed_interleaved():
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in "ab"}
    timings = Stopwatch(CPU).measure(calls, seconds=0, warm_ups=1, least=3)
    assert order == ["a", "b"] * 4
    assert timings["a"].n == 3


def test_an_interval_holds_its_median():
    timing = Timing.of([3.0, 1.0, 2.0, 2.5, 9.0])
    assert timing.least_s == 1 <= timing.low_s <= timing.median_s == 2.5 <= timing.high_s == 9
    assert timing.total_s == 17.5


def test_ratio_is_of_neighbouring_calls():
    drift = iter([1.0, 1.0, 2.0, 4.0, 8.0])  # the machine slows down; the ratio stays
    ours = (Reply(seconds, None) for seconds in drift)
    last = []

    def first():
        last.append(next(ours))
        return last[-1]

    result = compare_interleaved(first, lambda: Reply(3 * last[-1].seconds, None), n=5)
    assert (result.ratio, result.low, result.high) == (3, 3, 3)


def test_gaps_between_kernels_are_counted_once():
    spans = [("a", 0.0, 1.0), ("b", 0.5, 2.0), ("a", 3.0, 4.0)]
    summary = summarise_spans(spans)
    assert summary.busy_s == 3
    assert summary.idle_share == pytest.approx(0.25)
    assert summary.kernels == pytest.approx({"a": 2 / 3.5, "b": 1.5 / 3.5})
    assert summarise_spans([]) is None


BENCH_MODEL = BenchModel("demo", None, 4, "cpu", torch.float32)
FAST = BenchConfig(device="cpu", seconds=0.01)


@pytest.mark.slow
def test_peers_agree_before_they_are_timed(monkeypatch):
    monkeypatch.setattr(against, "STEP_PEERS", against.STEP_PEERS[:1])
    monkeypatch.setattr(against, "SCORE_PEERS", against.SCORE_PEERS[1:])
    (step,) = compare_steps(BENCH_MODEL, Window.parse("3+9,2+5"), FAST, folder=None)
    (score,) = compare_scores(BENCH_MODEL, Job.parse("2x20+2x5"), FAST)
    for result in (step, score):
        assert isinstance(result, ComparedPeer), result
        assert result.difference <= AGREEMENT[torch.float32]
        assert result.comparison.ratio > 0
        assert result.comparison.low <= result.comparison.ratio <= result.comparison.high
        assert result.ours_peak_bytes > 0


def peers_answer(monkeypatch, answer):
    """Let peers of no process answer what a function of their name gives."""

    class Fake(PeerProcess):
        def __init__(self, program, settings):
            self.program, self.peak_bytes = program, 1

        def __call__(self, **arguments):
            return Reply(1.0, answer(self.program))

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(against, "PeerProcess", Fake)


def test_a_peer_that_cannot_take_part_is_named_with_the_reason(monkeypatch):
    def answer(program):
        if program == "failing":
            raise PeerError("Traceback:\n  ...\nImportError: no tensor cores\n")
        return [1.0]

    peers_answer(monkeypatch, answer)
    peers = (
        Peer("Nobody", "any", ("no_such_package",), {}),
        Peer("Failing", "failing", (), {}),
        against.STEP_PEERS[-1],
    )
    monkeypatch.setattr(against, "STEP_PEERS", peers)
    results = list(compare_steps(BENCH_MODEL, Window.parse("3+9"), FAST, folder=None))
    assert [r.problem for r in results] == [
        "no_such_package is not installed",
        "ImportError: no tensor cores",
        "it runs on cuda only",
    ]


@pytest.mark.parametrize("theirs", [[-1.0, -7.01], [-1.0, float("nan")]])
def test_a_peer_with_other_results_is_not_timed(monkeypatch, theirs):
    peers_answer(monkeypatch, lambda program: [-1.0, -7.0] if program == "ours_score" else theirs)
    monkeypatch.setattr(against, "SCORE_PEERS", against.SCORE_PEERS[1:])
    (result,) = compare_scores(BENCH_MODEL, Job.parse("1x4+1x2"), FAST)
    assert isinstance(result, Unmeasured)
    assert result.problem.startswith("results differ by ")


@pytest.mark.parametrize(
    ("ours", "theirs", "problem"),
    [
        (-7.0035, -6.9965, None),  # both 5e-4 from float64
        (-7.0, -7.0035, None),
        (-7.0035, -7.0, "float64 is 5.0e-04 from ours, 0.0e+00 from the peer's"),
        (-7.0, -7.07, "float64 is 0.0e+00 from ours, 1.0e-02 from the peer's"),
        (-7.0, float("nan"), "float64 is 0.0e+00 from ours, nan from the peer's"),
    ],
)
def test_float64_decides_where_fp32_differs(monkeypatch, ours, theirs, problem):
    answers = {"ours_score": [ours], "lm_eval_hf": [theirs], "transformers_score": [-7.0]}
    peers_answer(monkeypatch, answers.__getitem__)
    monkeypatch.setattr(against, "SCORE_PEERS", against.SCORE_PEERS[:1])
    (result,) = compare_scores(BENCH_MODEL, Job.parse("1x4+1x2"), FAST)
    if problem is None:
        assert isinstance(result, ComparedPeer)
        assert result.errors.ours <= 2 * result.errors.peer
    else:
        assert result.problem.endswith(problem)


def test_the_referee_has_the_weights_of_the_others(monkeypatch):
    monkeypatch.setattr(against, "AGREEMENT", {torch.float32: 0.0})
    monkeypatch.setattr(against, "STEP_PEERS", against.STEP_PEERS[:1])
    (result,) = compare_steps(BENCH_MODEL, Window.parse("3+9,2+5"), FAST, folder=None)
    assert isinstance(result, ComparedPeer), result
    assert 0 < max(result.errors.ours, result.errors.peer) < 1e-5


@pytest.mark.parametrize("size", [1, 10**6], ids=["small", "large"])
def test_a_peer_that_ends_says_what_it_printed(size):
    with (
        PeerProcess("no_such_program", {"told": "x" * size}) as peer,
        pytest.raises(PeerError, match="no_such_program"),
    ):
        peer()


def test_a_peer_is_told_more_than_an_argument_can_hold(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "from cqa.bench.peers.child import serve, settings\n"
        "serve(lambda add: len(settings['told']) + add)\n"
    )
    with PeerProcess(program, {"told": "x" * 10**6}) as peer:
        assert [peer(add=n).value for n in (1, 2)] == [10**6 + 1, 10**6 + 2]


def test_the_file_holds_what_was_measured_before_a_run_was_cut_short(tmp_path, monkeypatch):
    taken = []

    def measure(*_):
        if taken:
            raise KeyboardInterrupt
        taken.append(1)
        return RouteLine("fused", 1)

    monkeypatch.setattr(run, "measure_step", measure)
    config = BenchConfig(
        device="cpu", levels=("step",), window=("3+9", "2+5"), seconds=0.001,
        out=tmp_path / "bench.json",
    )  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        run.bench(config)
    data = json.loads(config.out.read_text("utf-8"))
    assert data["step"]["windows"] == [{"route": "fused", "rows": 1}]


def test_texts_longer_than_the_model_are_refused_before_anything_is_drawn():
    from cqa.bench.shapes import check_fits

    config = parse_config(hf_config("demo"), "demo")
    with pytest.raises(ConfigError, match="got: 1100"):
        check_fits(config, [], [Job(1, 1000, 1, 100)])


def test_the_kernel_level_names_an_op_that_is_wrong(monkeypatch):
    from cqa.bench import kernels
    from cqa.bench.device import Ceilings
    from cqa.bench.ops import Bench

    if fastest(CPU, torch.float32) == "reference":
        pytest.skip("no other ops than the reference")
    monkeypatch.setitem(kernels.TOLERANCE, torch.float32, -1.0)
    layer = Bench.of(BENCH_MODEL, Window.parse("3+9"), 0.05)
    results = list(kernels.measure_ops(layer, Ceilings(1e9, 1e9), 0.0001))
    wrong = {r.name: r.problem for r in results if isinstance(r, Unmeasured)}
    assert "swiglu+down shrink" in wrong
    assert all(problem.startswith("off by ") for problem in wrong.values())

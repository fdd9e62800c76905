"""What `bench/aot.py` reads of machine code, and the arithmetic of its model."""

import json
from collections import Counter
from types import SimpleNamespace

import aot_compile
import aot_measured
import aot_report
import aot_time
import pytest
import torch
from aot_launch import Execution
from aot_record import Product, Streaming, all_layers, recorded
from aot_sass import parse_ptx, parse_sass, unrolled
from aot_step import Predicted, summed
from aot_time import CARDS, LaunchTime, best_fill, launch_time, product_time, tail
from aot_ttir import Program

from cqa.bench.device import Ceilings
from cqa.bench.results import Benchmark, MeasuredOp, OpLine, Rates
from cqa.bench.timing import Timing

H200 = CARDS["H200"]
HEX = "                                      /* 0x000fe20000000f00 */"


@pytest.fixture(autouse=True)
def backend():
    """None: nothing is computed."""


def sass(*instructions: str) -> str:
    """Write instructions as cuobjdump does, 16 bytes apart, each with its second line."""
    lines = ["\tcode for sm_90a", "\t\tFunction : a_kernel"]
    for i, text in enumerate(instructions):
        lines += [f"        /*{16 * i:04x}*/                   {text} ;{HEX}", f"    {HEX}"]
    return "\n".join(lines) + "\n"


TILES = sass(
    "MOV R1, c[0x0][0x28]",
    "LDGSTS.E.BYPASS.128 [R5], [R2.64]",  # 0x10: the outer loop begins
    "@!P0 LDG.E.U16 R7, [R8.64]",  # 0x20: the inner one
    "LDS.128 R12, [R5]",
    "BAR.SYNC.DEFER_BLOCKING 0x0",
    "HMMA.16816.F32.BF16 R20, R12, R14, R20",
    "@P1 BRA 0x20",
    "STG.E.64 [R30.64], R20",
    "NOP",
    "@P2 BRA 0x10",
    "CALL.REL.NOINC 0xc0",
    "EXIT",
    "MUFU.RCP R4, R5",  # 0xc0: a subroutine
    "RET.REL.NODEC R2 0x0",
    "BRA 0xe0",
)


def test_loops_have_their_own_instructions_and_what_only_calls_reach_is_left_out():
    code = parse_sass(TILES)
    outer, inner = code.loops
    assert (outer.start, outer.stop, outer.depth) == (0x10, 0x90, 0)
    assert (inner.start, inner.stop, inner.depth) == (0x20, 0x60, 1)
    assert (outer.instructions, inner.instructions, code.outside) == (3, 5, 3)
    assert (inner.barriers, inner.shared_loads, inner.multiplies) == (1, 1, True)
    assert (outer.load_bytes, outer.store_bytes, inner.load_bytes) == ((16,), (8,), (2,))
    assert (outer.asynchronous, outer.waits_for_loads) == (True, False)
    assert (inner.asynchronous, inner.waits_for_loads) == (False, True)
    assert code.matrix_unit == "HMMA"


def test_tiles_that_are_loaded_number_by_number_are_named():
    tile = ["LDG.E.U16 R7, [R8.64]"] * 3 + ["HMMA.16816.F32.BF16 R20, R12, R14, R20"]
    vector = [tile[0], "LDGSTS.E.128 [R5], [R2.64]", tile[3]]
    alone = [*tile[:3], "FADD R1, R2, R3"]
    found = [
        aot_compile.narrow(parse_sass(sass(*body, "@P0 BRA 0x0", "EXIT")).loops[0])
        for body in (tile, vector, alone)
    ]
    assert "3 loads of 2 bytes" in found[0]
    assert found[1:] == ["", ""]


def test_registers_that_wait_in_memory_while_a_loop_runs_are_no_problem():
    store, loop, load = "STL [R1], R5", ["FADD R1, R2, R3", "@P0 BRA 0x10"], "LDL R5, [R1]"
    around = parse_sass(sass(store, *loop, load, "EXIT"))
    within = parse_sass(sass("MOV R1, R2", store, load, "@P0 BRA 0x10", "EXIT"))
    assert not aot_compile.spills_often(around)
    assert aot_compile.spills_often(within)
    assert aot_compile.spills_often(parse_sass(sass(store, load, "EXIT")))


PTX = """
.visible .entry a_kernel(
$L__BB0_1:
\tld.global.v4.b32 \t{ %r1, %r2, %r3, %r4 }, [ %rd1 + 0 ];
\tld.shared.b32 \t%r9, [%r8];
\t@%p1 bra \t$L__BB0_1;
$L__BB0_2:
\tcp.async.cg.shared.global [ %r7 + 0 ], [ %rd9 + 0 ], 0x10, 0x10;
\tcp.async.commit_group ;
\tmma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 { %r1 }, { %r2 }, { %r3 }, { %r4 };
\t@%p2 bra \t$L__BB0_2;
\tret;
"""


def test_an_unrolled_loop_is_known_with_the_one_for_what_is_left():
    load, step = "LDG.E.128 R4, [R2.64]", ["LDGSTS.E.128 [R5], [R2.64]", "HMMA.16816.F32 R1, R2"]
    machine = parse_sass(
        sass(*[load] * 4, "@P0 BRA 0x0", load, "@P1 BRA 0x50", *step, "@P2 BRA 0x70", "EXIT")
    )
    ptx = parse_ptx(PTX)
    assert [loop.marks for loop in ptx.loops] == [1, 2]
    groups = unrolled(machine, ptx)
    assert [[(loop.start, times) for loop, times in group] for group in groups] == [
        [(0x00, 4), (0x50, 1)],
        [(0x70, 1)],
    ]
    assert unrolled(parse_sass(sass(load, "EXIT")), ptx) is None


TTIR = """
module {
  tt.func public @a_kernel(%x: !tt.ptr<bf16> {tt.divisibility = 16 : i32} loc("x"(#loc)), %out: !tt.ptr<f32> loc("out"(#loc)), %k: i32 loc("k"(#loc))) attributes {noinline = false} {
    %cst = arith.constant dense<0.000000e+00> : tensor<32x64xf32> loc(#loc1)
    %c16_i32 = arith.constant 16 : i32 loc(#loc1)
    %c0_i32 = arith.constant 0 : i32 loc(#loc1)
    %0 = tt.get_program_id y : i32 loc(#loc2)
    %1 = tt.get_num_programs y : i32 loc(#loc2)
    %2 = arith.muli %1, %c16_i32 : i32 loc(#loc2)
    %first = arith.muli %0, %c16_i32 : i32 loc(callsite(#loc3 at #loc2))
    %at = tt.splat %x : !tt.ptr<bf16> -> tensor<32x16x!tt.ptr<bf16>> loc(#loc4)
    %s = scf.for %start = %first to %k step %2 iter_args(%acc = %cst, %here = %at) -> (tensor<32x64xf32>, tensor<32x16x!tt.ptr<bf16>>)  : i32 {
      %a = tt.load %here : tensor<32x16x!tt.ptr<bf16>> loc(#loc5)
      %b = tt.trans %a {order = array<i32: 1, 0>} : tensor<64x16xbf16> -> tensor<16x64xbf16> loc(#loc5)
      %d = tt.dot %a, %b, %acc, inputPrecision = tf32 : tensor<32x16xbf16> * tensor<16x64xbf16> -> tensor<32x64xf32> loc(#loc5)
      scf.yield %d, %here : tensor<32x64xf32>, tensor<32x16x!tt.ptr<bf16>> loc(#loc5)
    } loc(#loc5)
    %4 = arith.cmpi eq, %0, %c0_i32 : i32 loc(#loc6)
    scf.if %4 {
      %p = tt.splat %out : !tt.ptr<f32> -> tensor<32x64x!tt.ptr<f32>> loc(#loc7)
      tt.store %p, %s#0 : tensor<32x64x!tt.ptr<f32>> loc(#loc7)
    } else {
      %p = tt.splat %out : !tt.ptr<f32> -> tensor<8x!tt.ptr<f32>> loc(#loc7)
      tt.store %p, %cst : tensor<8x!tt.ptr<f32>> loc(#loc7)
    } loc(#loc6)
    tt.return loc(#loc8)
  } loc(#loc)
} loc(#loc)
"""  # noqa: E501


def test_trips_bytes_and_operations_follow_from_the_arguments_and_the_place_in_the_grid():
    work = Program(TTIR).work((7, 4, 1), {"k": 176})
    # 176 columns by 16 are 11 steps: the four programs along y take 3, 3, 3 and 2
    assert work.trips == [pytest.approx(11 / 4)]
    assert work.read == {"x": pytest.approx(11 / 4 * 32 * 16 * 2)}
    assert work.written == {"out": pytest.approx((32 * 64 * 4 + 3 * 8 * 4) / 4)}
    assert work.flops == pytest.approx(11 / 4 * 2 * 32 * 16 * 64)
    assert not work.unknown
    assert Program(TTIR).work((7, 4, 1), {}).unknown  # k is not given


def test_tails_and_products_follow_the_tiles():
    assert tail(264, 132) == 1.0
    assert tail(133, 132) == pytest.approx(133 / 264)
    assert best_fill(1400, 3584, 132) == pytest.approx(11 * 28 / (3 * 132))  # by 128 × 128
    assert best_fill(1400, 3584, 108) == pytest.approx(11 * 28 / (3 * 108))
    rate = H200.bf16_flops_per_s * H200.large_product * aot_time.SHAPE_SHARE
    seconds = product_time(1400, 3584, 3648, 0, H200)
    at_full = 2 * 1400 * 3584 * 3648 / rate
    assert seconds - aot_time.START_S == pytest.approx(at_full / best_fill(1400, 3584, 132))
    thin = product_time(8, 3584, 3648, 26_000_000, H200)  # the weight has to be read
    assert thin - aot_time.START_S == pytest.approx(26e6 / (0.9 * 4.8e12))


def made_up_code() -> aot_compile.Compiled:
    step = ["LDG.E.128 R4, [R2.64]", "HMMA.16816.F32 R1, R2"] + ["FADD R1, R2, R3"] * 7
    machine = parse_sass(sass("MOV R1, R2", *step, "@P2 BRA 0x10", "EXIT"))
    return aot_compile.Compiled(
        registers=64, stack_bytes=0, shared_bytes=0, code=machine, ptx=machine,
        program=Program(TTIR), resident=4, problems=(),
    )  # fmt: skip


def test_a_launch_takes_what_it_waits_for_longest():
    compiled = made_up_code()
    launch = SimpleNamespace(warps=4)
    execution = Execution(launch, (132, 4, 1), (("k", 16_000),), (("x", 10**7), ("out", 10**5)))
    time = launch_time(compiled, execution, H200)
    programs, trips = 132 * 4, 250
    moved = 10**7 + 10**5  # what lies there, as more is asked for
    assert time.memory_s == pytest.approx(moved / (0.9 * 4.8e12))
    asked = programs * (trips * 1024 + (32 * 64 * 4 + 3 * 32) / 4)
    assert time.cache_s == pytest.approx(asked / (32 * 132 * 1.83e9))
    issued = programs * 4 * (2 + trips * 10)
    assert time.issue_s == pytest.approx(issued / (4 * 0.55 * 132 * 1.83e9))  # four warps each
    assert time.latency_s == pytest.approx(trips * 700 / 1.83e9)  # in one wave
    assert time.tail == 1.0
    assert time.seconds == pytest.approx(aot_time.START_S + time.latency_s)
    assert time.limit == "latency"
    assert LaunchTime(3e-5, 0, 0, 1e-5, 0, 0.5).seconds == pytest.approx(1.5e-6 + 6e-5)


def test_layers_are_told_from_two_records():
    first, middle, last = Streaming("first", 1), Streaming("middle", 2), Streaming("last", 3)

    def record(n: int) -> Counter:
        return Counter({first: 1, middle: 5 * (n - 2), last: 1})

    assert all_layers(28, 2, record) == Counter({first: 1, middle: 130, last: 1})


def predicted(scale: float = 1.0) -> Predicted:
    """A card's sums over a single op and a single product."""
    work = Counter({Streaming("copy_", round(4e10 * scale)): 1})
    step = summed(work, H200)
    return Predicted(H200, step, step, step, n_models=8, fed=10, computed=11)


def test_sums_beside_goals_and_what_is_held(tmp_path):
    now = predicted()
    assert now.totals_s["job"] == pytest.approx(8 * now.step.seconds)
    assert now.totals_s["paper run"] == pytest.approx(564 * now.step.seconds)
    text = "\n".join(aot_report.goals([now]))
    assert "| H200 | training step, 0+700,0+700 tokens" in text
    assert "n/a" in text
    held = tmp_path / "held.json"
    aot_report.write_held([now], held)
    before = json.loads(held.read_text())
    assert not list(aot_report.risen([predicted(1.09)], before))
    step, job = aot_report.risen([predicted(1.11)], before)
    assert "a step of at most" in step
    assert "other ops of PyTorch by" in step
    assert "a job of at most" in job


def test_the_host_counts_where_it_takes_longer():
    many = Counter({Streaming("add", 8): 1000})
    total = summed(many, H200)
    assert total.host_s > total.device_s
    assert total.seconds == pytest.approx(1000 * aot_time.HOST_S)


def timing(seconds: float) -> Timing:
    return Timing.of([seconds])


def test_a_benchmark_stands_beside_what_was_predicted(tmp_path, monkeypatch):
    ceilings = Ceilings(1.0, 1.0)
    rates = Rates(timing(3e-3), 1, 1, 1.0, 1.0, 1.0, 1.0, 1.0)
    data = Benchmark(
        format=1, settings={"shape": "demo", "rank": 8, "dropout": 0.0}, windows=("5+7",), jobs=(),
        dtype="bf16", device={"name": "NVIDIA H200"}, ceilings=ceilings,
        lines={"kernel": {"0+7": [MeasuredOp(OpLine("rope of q"), "forward", 0.0, rates)]}},
    )  # fmt: skip
    monkeypatch.setattr(aot_measured, "predict_ops", lambda card, work: {"rope of q forward": 2e-3})
    file = tmp_path / "bench.json"
    written = data.to_json()
    file.write_text(json.dumps(written))
    text = "\n".join(aot_measured.compared(file))
    assert "| rope of q forward | 2.000 | 3.000 | 1.50 |" in text
    assert "off by a factor of 1.50" in text
    file.write_text(json.dumps(written | {"device": {"name": "GeForce"}}))
    with pytest.raises(SystemExit, match="expected a benchmark of A100, H100, H200"):
        list(aot_measured.compared(file))


def test_products_are_seen_in_place_and_others_are_not_taken_for_reading():
    a, b, c = (torch.empty(size, device="meta") for size in ((6, 4), (4, 8), (6, 8)))
    with recorded(H200, vocab_size=8) as events:
        torch.mm(a, b)
        c.addmm_(a, b)
        torch.addmm(c, a, b, out=torch.empty_like(c))
        c.T.zero_()
        c[:, :2].add(1)
    made = Product(6, 8, 4, 4 * (6 * 4 + 4 * 8 + 6 * 8), wide=True, head=True)
    added = Product(6, 8, 4, 4 * (6 * 4 + 4 * 8 + 2 * 6 * 8), wide=True, head=True)
    assert events == Counter(
        {made: 1, added: 2, Streaming("zero_", 4 * 48): 1, Streaming("add", 2 * 4 * 12): 1}
    )
    with pytest.raises(NotImplementedError, match="got aten"), recorded(H200, vocab_size=8):
        torch.mv(a, b[:, 0])

"""Instructions per pair do not grow: in PTX, and in SASS where there is a disassembler.

The table instructions.json is printed again by `python -m tests.kernel.test_instructions`, with both.
"""

import json
import sys
from pathlib import Path

import pytest

from tests.kernel.instructions import (
    REFERENCES,
    Code,
    Instruction,
    count,
    disassembler,
    ptx_code,
    ptx_count,
    sass_code,
    sass_count,
)
from tests.kernel.test_cuda_source import needs_nvrtc

TABLE = Path(__file__).with_name("instructions.json")
GROWTH = 1.03  # what another choice of the compiler may add
needs_disassembler = pytest.mark.skipif(disassembler() is None, reason="no disassembler")


def committed(name, language):
    return json.loads(TABLE.read_text())[name][language]


def assert_no_more(found, allowed):
    assert 0 < found.total <= GROWTH * allowed["total"], f"{found} instead of {allowed}"


@needs_nvrtc
@pytest.mark.parametrize("name", REFERENCES)
def test_ptx_has_no_more_instructions_per_pair(name):
    assert_no_more(ptx_count(REFERENCES[name].source(), REFERENCES[name]), committed(name, "ptx"))


@needs_nvrtc
@needs_disassembler
@pytest.mark.parametrize("name", REFERENCES)
def test_sass_has_no_more_instructions_per_pair(name):
    assert_no_more(sass_count(REFERENCES[name].source(), REFERENCES[name], disassembler()), committed(name, "sass"))


def test_the_table_holds_the_references():
    assert list(json.loads(TABLE.read_text())) == list(REFERENCES)


# -- the counts can be wrong ---------------------------------------------------------------------------------------

PTX = """
.visible .entry k(
)
{
	mov.u32 	%r1, 0;
$L__BB0_1:
	ld.shared.f32 	%f1, [%r1];
$L__BB0_2:
	ex2.approx.ftz.f32 	%f2, %f1;
	ex2.approx.ftz.f32 	%f3, %f1;
	@%p1 bra 	$L__BB0_2;
	@!%p2 bra 	$L__BB0_3;
	add.f32 	%f4, %f2, %f3;
$L__BB0_3:
	@%p3 bra 	$L__BB0_1;
	ret;
}
"""
SASS = """
	.section	.text.other,"ax",@progbits
        /*0000*/                   MUFU.EX2 R1, R1 ;
	.section	.text.k,"ax",@progbits
.L_x_1:
        /*0010*/                   LDS.128 R4, [R1] ;
        /*0020*/              @!P1 FADD R4, R4, R5 ;
        /*0030*/                   MUFU.EX2 R1, R1 ;
        /*0040*/               @P0 BRA `(.L_x_1) ;
        /*0050*/                   EXIT ;
"""


def test_loops_are_found():
    code = ptx_code(PTX, "k")
    assert code.loops() == [(0, 6), (1, 3)]
    assert count(code, "ex2", 2) == (1, 3, {"ex2": 2, "bra": 1})
    assert count(code, "add", 1) == (1, 4, {"bra": 2, "ld": 1, "add": 1})  # without the loop inside
    assert count(code, "sqrt", 1) == (0, 0, {})
    code = sass_code(SASS, "k")
    assert count(code, r"MUFU\.EX2", 1) == (1, 4, {"LDS": 1, "FADD": 1, "MUFU": 1, "BRA": 1})
    assert Code([Instruction("EXIT", "")], {}).hot("MUFU") == []


@needs_nvrtc
def test_more_instructions_are_found():
    """A kernel that takes a square root as well, held against the figure of the one without."""
    reference = REFERENCES["Gaussian D=3"]
    slower = reference._replace(text=f"{reference.text}*Sqrt(1 + SqDist(x,y))")
    with pytest.raises(AssertionError):
        assert_no_more(ptx_count(slower.source(), slower), committed("Gaussian D=3", "ptx"))


def test_the_disassembler_is_found(monkeypatch, tmp_path):
    (tool := tmp_path / "nvdisasm").touch()
    for named in (tool, tmp_path):
        monkeypatch.setenv("DRED_NVDISASM", str(named))
        assert disassembler() == str(tool)


def table(tool):
    """Both counts of every reference; what there is in the file where there is no disassembler."""
    out = {}
    for name, reference in REFERENCES.items():
        source = reference.source()
        out[name] = {"ptx": ptx_count(source, reference)._asdict()}
        out[name]["sass"] = sass_count(source, reference, tool)._asdict() if tool else committed(name, "sass")
    return out


if __name__ == "__main__":
    TABLE.write_text(json.dumps(table(disassembler()), indent=1) + "\n")
    print(TABLE.read_text(), file=sys.stderr)

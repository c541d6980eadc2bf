"""mutant.h in Triton: planted mistakes, for testing the tests.

    hit = overlap > threshold if not mutant("nms_threshold") else overlap >= threshold

`mutant` is a constant False wherever a kernel is compiled: the compiler sees what is right, and nothing else. In
Triton's interpreter, tests/conformance/test_triton_mutants.py sets `active_mutant` to one name after the other, and the
suite must turn red for each. A decision that a C++ or CUDA source makes too has the name of its FF_MUTANT.
"""

import triton

active_mutant: str | None = None


@triton.constexpr_function
def mutant(name):
    return name == active_mutant

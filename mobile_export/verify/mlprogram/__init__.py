"""Core ML ML programs on any machine: a saved .mlpackage is read, checked and executed without Apple's libraries.

package.py        folder (or bare bytes) -> the program's protobuf and its weight files
blob.py           weight file -> tensors
values.py         types and constants of the protobuf -> dtypes, shapes, tensors
program.py        protobuf -> Program: functions, their operations, what they take and give
operators.py      every operator's arithmetic (in elementwise, products, reductions, shapes, compressed) and dtype
in_place.py       proof that a state may be updated without a copy
prepare.py        what of a function is the same in every run: checked and resolved once
interpreter.py    Program + inputs + state -> outputs
static_checks.py  a package looked at without running it; neural_engine.py: what may keep it off that unit
"""

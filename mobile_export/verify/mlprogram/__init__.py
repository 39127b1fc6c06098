"""Core ML ML programs on any machine: a saved .mlpackage is read, checked and executed without Apple's libraries.

package.py      folder (or bare bytes) -> the program's protobuf and its weight files
blob.py         weight file -> tensors: entries, packed 1 to 6 bit integers
values.py       types and constants of the protobuf -> dtypes, shapes, tensors
program.py      protobuf -> Program: functions, their operations, what they take and give
operators.py    what each operator takes and gives; its arithmetic is in the files it names
in_place.py     proof that a state may be updated without a copy
interpreter.py  Program + inputs + state -> outputs
"""

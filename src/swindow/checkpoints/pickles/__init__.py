"""What a file of ``torch.save`` holds, found out without executing any of it, in a process of its own.

* `machine`: the stack machine that a pickle is a program for, without the instructions that act
* `tensors`: the few calls that make containers and tensors, as notes of where their numbers lie
* `archives`: the zip files that torch writes, and what it wrote before 1.6
* `reading`: which of a file's state dicts it is; the process, and its limits

No tensor is copied here: whoever asked reads those from the file. The modules import the standard library and each
other, nothing of torch, so that a file is refused in the time that a bare Python takes to start.
"""

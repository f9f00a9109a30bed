"""``python -m tests.preloaded.call``: calls a function; stdin has names of module and function, and the arguments."""

import importlib
import pickle
import sys

if __name__ == "__main__":
    module, name, arguments, options = pickle.load(sys.stdin.buffer)
    getattr(importlib.import_module(module), name)(*arguments, **options)

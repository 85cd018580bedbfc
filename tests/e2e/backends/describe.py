"""Reports its environment, arguments and directory."""

import json
import os
import sys

what = {"environment": dict(os.environ), "arguments": sys.argv[1:-1], "directory": os.getcwd()}
print(json.dumps({"jsonrpc": "2.0", "method": "described", "params": what}), flush=True)
sys.stdin.read()

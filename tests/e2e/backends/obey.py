"""
Does what the method of a message names, and echoes messages with other methods.

`exit`: writes a last message, then exits with that status; `crash`: kills itself; `close stdout`;
`close stdin`.
"""

import json
import os
import signal
import sys
import time

for line in sys.stdin.buffer:
    message = json.loads(line)
    method = message.get("method")
    if method == "exit":
        os.write(1, b'{"jsonrpc":"2.0","method":"last words"}\n')
        os._exit(message["params"]["status"])
    elif method == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    elif method == "close stdout":
        os.close(1)
        time.sleep(600)
    elif method == "close stdin":
        os.close(0)
        time.sleep(600)
    else:
        os.write(1, line)

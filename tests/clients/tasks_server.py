"""
A real server on FastMCP with the tasks extension; its one tool runs as a task.

What other people wrote makes the tasks, and keeps them in this process.
"""

import asyncio
import os

from fastmcp import FastMCP
from fastmcp_tasks import TasksExtension

server = FastMCP("tasks")
server.add_extension(TasksExtension())


@server.tool(task=True)
async def work(seconds: float, token: str) -> str:
    """Take so long, and say who has worked."""
    await asyncio.sleep(seconds)
    return f"{token} {os.getpid()}"


server.run(show_banner=False)

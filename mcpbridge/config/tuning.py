"""
Internal constants: bounds and intervals that are not settings.

Each has a name here so that a test can reach it and an operator can look it up.
Times are in seconds, sizes in bytes, unless the name says otherwise.
"""

from __future__ import annotations

MIB = 1024 * 1024

#: The largest file of environment variables (`envFile`).
ENV_FILE_BYTES = MIB

#: The largest file that holds a secret (`--request-state-key-file`).
SECRET_FILE_BYTES = 64 * 1024

#: So many keys of a file that mean nothing to the bridge are named at the start.
NAMED_KEYS = 30

#: A line of stderr is cut here; the session lives.
STDERR_LINE_BYTES = 64 * 1024

#: How many of the last lines of stderr the log shows when a session closes,
#: and how much of each.
STDERR_TAIL_LINES = 5
STDERR_TAIL_CHARS = 500

#: How much filters and observers are told of a client's name, and of its version.
CLIENT_TEXT_CHARS = 200

#: A line of a backend beyond `max_message_bytes` is skipped; one so many times as long
#: has no end, and ends the session.
ENDLESS_FACTOR = 64

#: How many lines of stderr of one process, and of all processes of a server, are logged in
#: so many seconds, and how much of each; what is left out is counted.
STDERR_SECONDS = 10.0
STDERR_PROCESS_LINES = 100
STDERR_SERVER_LINES = 200
STDERR_LOG_CHARS = 1000

#: A file of a server's stderr is rotated at this size, and so many old ones are kept.
STDERR_FILE_BYTES = 10 * MIB
STDERR_FILES = 5

#: A launcher must have started a backend after this time.
LAUNCH_SECONDS = 60.0

#: How many connections may wait to be accepted, where a listener does not say.
BACKLOG = 1024

#: A request's head must be complete after this time, and all of it after the other.
HEAD_SECONDS = 30.0
REQUEST_SECONDS = 300.0

#: Over so long a time a client must transfer bytes at `min_transfer_rate`.
RATE_SECONDS = 60.0

#: An idle connection is closed after this time.
IDLE_SECONDS = 60.0

#: How long and how much is still read of a body that was refused, so that
#: its sender gets to read the answer.
DRAIN_SECONDS = 5.0
DRAIN_BYTES = 64 * MIB

#: A request of `/mcp` that has had no message for so long is answered as an
#: event stream, which is kept alive and can be resumed.
COMMIT_SECONDS = 2.0

#: How soon a client is to come back (`retry`, 2025-11-25, basic/transports).
RETRY_MILLISECONDS = 1000

#: What a client may send behind an open stream, where nothing can answer it, and
#: behind any other request, before no more is read until that is answered.
PIPELINED_BYTES = 16 * 1024

#: A connection serves at most so many pipelined requests, for at most so long, before
#: it goes to the back of the queue of all that have more.
SLICE_REQUESTS = 8
SLICE_SECONDS = 0.00025

#: Of a chunked body, whose chunks may be of one byte, so much counts as a request.
SLICE_BYTES = 2048

#: How long that queue is served in one iteration of the reactor.
TURN_SECONDS = 0.002

#: How often it is looked whether a client has left whose connection is not read.
LEFT_SECONDS = 1.0

#: How often the log says that there is no room, for clients or for connections.
COMPLAIN_SECONDS = 60.0

#: Of so many causes it is known when the log said so last; all others count as one.
MAX_CAUSES = 64

#: How long a server that cannot be started is left alone, at first and at most.
BACKOFF_SECONDS = 1.0
MAX_BACKOFF_SECONDS = 60.0

#: After so many sessions in a row whose process ended without a word, it is checked whether
#: the server can be started.
STILLBORN_STARTS = 50

#: How far apart a server that can be started is checked for that, when callers' processes fail.
CHECK_SECONDS = 5.0

#: Spare processes are started one at a time, so far apart.
WARM_SECONDS = 0.1

#: How soon that is tried again while the limits allow none.
STARVED_SECONDS = 5.0

#: A process that lives so long has started.
SETTLED_SECONDS = 5.0

#: What a spare process may say before it is used; then it is not read.
HELD_BYTES = 64 * 1024

#: How much output that nobody reads is taken from a backend in a second; then it is
#: paused for the rest of that second.
UNREAD_BYTES_PER_SECOND = MIB

#: How many times as much stderr is taken while a client reads, who may wait for an answer.
ATTENDED_FACTOR = 8

#: How many processes that are not in use may be ended to make room for one.
ROOM_TRIES = 8

#: How many processes of a server go on starting whose clients have left.
KEPT_STARTS = 1

#: How many sessions whose grace is not over are looked at for the one that gives way next, and
#: those of how many addresses beside a newcomer's own, those with most sessions first.
ABANDONED_LOOKS = 32
ABANDONED_ADDRESSES = 16

#: How long a legacy backend's questions are collected before the client gets them.
COLLECT_SECONDS = 0.05

#: After which a process that did not take what the bridge had to say is tried again.
SAY_AGAIN_SECONDS = 0.5

#: How long a legacy backend may take to answer what was cancelled, to be used again.
CANCEL_SECONDS = 1.0

#: How soon what a client listens for is listened for anew, when its process has ended.
RELISTEN_SECONDS = 1.0

#: How many processes and containers the watchdog is told of, beside the tags.
MAX_RECORDS = 4096

#: How many dead bridges a start cleans up after; the next start goes on with the others.
MAX_CLEANUPS = 64

#: How long it may take to clean up after one of them.
CLEANUP_SECONDS = 180.0

#: How many lines about sessions (SIGUSR1) are logged in one turn of the reactor.
REPORTED_LINES = 50

#: How long all large messages together are read in one turn of the reactor.
LARGE_TURN_SECONDS = 0.005

#: Memory is given back to the system when a request of this size is over, so often at most.
TRIM_BYTES = MIB
TRIM_SECONDS = 2.0

#: A session may hold that part of `max_response_bytes` in answers that are not taken,
#: and in any case one message.
SESSION_SHARE = 8

#: What a client, a line of a backend or a waiting room holds beyond so much counts as large.
SMALL_BYTES = 64 * 1024

#: What an event that is kept takes beside its text, about.
EVENT_OVERHEAD = 400

#: Which part of `max_response_bytes` is made free at a time where events give way.
EVENTS_DROPPED = 256

#: While `max_response_bytes` is reached, clients that will need longer than this to take
#: what waits for them are slow; and how often that is looked at.
SLOW_SECONDS = 5.0
FULL_SECONDS = 1.0

#: ... and before that when it has grown by one part in so many of its limit.
FULL_GROWTH = 64

#: How long a command of a container engine may take, how much of its output is
#: read, and how many run at a time for one server.
ENGINE_COMMAND_SECONDS = 30.0
ENGINE_OUTPUT_BYTES = 64 * 1024
ENGINE_COMMANDS = 4

#: How soon an engine is asked again whether a container is gone, at first and at most.
ENGINE_PAUSE_SECONDS = 0.1
MAX_ENGINE_PAUSE_SECONDS = 10.0

#: After so many failed removals of one container the log says so.
REMOVALS_BEFORE_WARNING = 3

#: How long an engine may go on creating a container after its CLI was interrupted.
CONTAINER_BIRTH_SECONDS = 5.0

#: How long the bridge waits at its stop beyond the graces of its servers, and
#: how much longer where they run in containers.
STOP_SLACK_SECONDS = 5.0
CONTAINER_STOP_SECONDS = 10.0

#: How many idle connections of an address are found in one look, and for how long for
#: each of its connections it is not looked again where there were fewer: a look takes a
#: microsecond for each, so all of them together take a tenth of the time at most.
IDLE_CANDIDATES = 64
IDLE_LOOK_SECONDS = 0.00001

#: How long a connection that gives way may take to close; it is not counted meanwhile.
GIVE_WAY_SECONDS = 1.0

#: Of how many addresses, those with most connections first, one is looked for.
IDLE_ADDRESSES = 8

"""
Internal constants: limits and intervals that are not settings.

Each has a name, so that tests can reach it and operators can look it up.  Times are
in seconds and sizes in bytes, unless the name says otherwise.
"""

from __future__ import annotations

MIB = 1024 * 1024

#: The largest file of environment variables (`envFile`).
ENV_FILE_BYTES = MIB

#: The largest file whose contents a value may be (`${file:PATH}`).
VALUE_FILE_BYTES = 64 * 1024

#: The largest file that holds a secret (`--request-state-key-file`).
SECRET_FILE_BYTES = 64 * 1024

#: The most variables that `env_from` may set for a process, and the largest value of one.
ENV_FROM_VARIABLES = 32
ENV_FROM_VALUE_BYTES = 8 * 1024

#: The largest number of ignored keys of a file that are named at the start.
NAMED_KEYS = 30

#: A longer line of stderr is truncated; the session goes on.
STDERR_LINE_BYTES = 64 * 1024

#: The last lines of stderr in the log when a session ends: how many, and the length of
#: each.
STDERR_TAIL_LINES = 5
STDERR_TAIL_CHARS = 500

#: The longest name and version of a client that filters and observers get.
CLIENT_TEXT_CHARS = 200

#: A line of a backend beyond `max_message_bytes` is skipped.  One that is this many times
#: as long counts as endless and ends the session.
ENDLESS_FACTOR = 64

#: The lines of stderr that are logged in this time: of one process, of all processes of a
#: server, and the length of each.  Further lines are counted.
STDERR_SECONDS = 10.0
STDERR_PROCESS_LINES = 100
STDERR_SERVER_LINES = 200
STDERR_LOG_CHARS = 1000

#: The size at which a stderr file is rotated, and how many old ones are kept.
STDERR_FILE_BYTES = 10 * MIB
STDERR_FILES = 5

#: How long a launcher may take to start a backend.
LAUNCH_SECONDS = 60.0

#: How often the files of a TLS listener are checked for changes, when connections come, and
#: how large each of them may be.
CERTIFICATE_CHECK_SECONDS = 1.0
CERTIFICATE_FILE_BYTES = MIB

#: How many connections may wait to be accepted, unless the endpoint says otherwise.
BACKLOG = 1024

#: How long a client may take to send the head of a request, and all of it.
HEAD_SECONDS = 30.0
REQUEST_SECONDS = 300.0

#: The time over which `min_transfer_rate` is averaged.
RATE_SECONDS = 60.0

#: An idle connection is closed after this time.
IDLE_SECONDS = 60.0

#: How long closing it may take before it is aborted.
ABORT_SECONDS = 15.0

#: How long, and how many bytes, a refused body is read and discarded, so that the client
#: sees the answer.
DRAIN_SECONDS = 5.0
DRAIN_BYTES = 64 * MIB

#: A request of `/mcp` without a message for this long is answered with an event stream,
#: which can be kept alive and resumed.
COMMIT_SECONDS = 2.0

#: How soon a client should reconnect (`retry`, 2025-11-25, basic/transports).
RETRY_MILLISECONDS = 1000

#: How much a client may send behind an open stream, where nothing can answer it; and how
#: much is read behind any other request before that is answered.
PIPELINED_BYTES = 16 * 1024

#: How many pipelined requests of one connection are served, and for how long, before it
#: goes to the back of the queue of connections that have more.
SLICE_REQUESTS = 8
SLICE_SECONDS = 0.00025

#: How much of what one connection has received is parsed at once, except for a body of
#: known length: so many bytes may be a hundred requests, or hundreds of chunks.
SLICE_BYTES = 4096

#: How long that queue is served in one iteration of the reactor.
TURN_SECONDS = 0.002

#: How often a connection that is not read is checked for a client that has left.
LEFT_SECONDS = 1.0

#: How often the log repeats that a limit on clients or connections is reached.
COMPLAIN_SECONDS = 60.0

#: The number of causes that are repeated separately; all others count as one.
MAX_CAUSES = 64

#: How many seconds' worth of a rate (`messages_per_second`) a caller may use at one time.
BURST_SECONDS = 10.0

#: Of how many callers a rate limit keeps the tokens; all further ones share a bucket.
RATE_LIMITED_CALLERS = 10_000

#: Failed attempts to authenticate that an address may make without delay; how long the
#: answer to the next one is delayed, and at most; and how long it takes to forget one.
ATTEMPTS_FREE = 5
ATTEMPT_DELAY_SECONDS = 0.25
MAX_ATTEMPT_DELAY_SECONDS = 8.0
ATTEMPT_FORGOTTEN_SECONDS = 30.0

#: How many answers are delayed at one time: of one address, and of all.
DELAYED_OF_ADDRESS = 4
DELAYED_ANSWERS = 256

#: Of how many addresses the failed attempts are counted; all further ones count as one.
ATTEMPT_ADDRESSES = 10_000

#: The audit log: how long a record may wait to be written, and how many are written at once.
AUDIT_SECONDS = 0.5
AUDIT_BATCH = 500

#: How often it is tried again where it cannot be written; and how many records wait
#: meanwhile, and about how many bytes these may take.
AUDIT_RETRY_SECONDS = 1.0
AUDIT_QUEUE_RECORDS = 10_000
AUDIT_QUEUE_BYTES = 4 * MIB

#: How many requests of one session may be open for it.
AUDIT_OPEN_CALLS = 1024

#: How many requests of one session are timed at one time, and how many of a server within
#: so many seconds.  The others count as if they had ended like one that was timed.
MEASURED_CALLS = 1024
MEASURED_REQUESTS = 100
MEASURED_SECONDS = 0.25

#: How many requests of one session have open spans.
TRACED_CALLS = 1024

#: How much it shows of a name, and of the arguments, as they are written in JSON.
AUDIT_TEXT_CHARS = 1000
AUDIT_ARGUMENT_BYTES = 4096

#: The pause before a server that could not be started is tried again, at first and at most.
BACKOFF_SECONDS = 1.0
MAX_BACKOFF_SECONDS = 60.0

#: The same pause at most before a remote server is tried again: to connect costs little, and
#: clients are to be served again soon after a restart.
REMOTE_BACKOFF_SECONDS = 2.0

#: After this many sessions in a row whose process ended without output, or wrote none in
#: `start_timeout`, the bridge checks whether the server can be started.
STILLBORN_STARTS = 3

#: So many starts that failed in a row make a server not ready, although a process of it works.
FAILED_STARTS = 2

#: The least time between two of these checks of a server that can be started.
CHECK_SECONDS = 5.0

#: The part of `canary_interval` by which the pauses between two canaries vary.
CANARY_JITTER = 0.2

#: The time between two starts of warm processes.
WARM_SECONDS = 0.1
#: The same between the first ones of two servers, so that fifty servers do not start all at once.
WARM_STAGGER_SECONDS = 0.02

#: The same while the limits allow no warm process.
STARVED_SECONDS = 5.0

#: A process that lives this long has started successfully.
SETTLED_SECONDS = 5.0

#: How much output of a warm process is read before its first use.
SPARE_OUTPUT_BYTES = 64 * 1024

#: The part of the bridge's permits that is divided among its servers, so that none can keep
#: the others from having any: one half.
GUARANTEED_DIVISOR = 2

#: How much output that nobody reads is taken from a backend in a second; then the backend
#: is paused for the rest of that second.
UNREAD_BYTES_PER_SECOND = MIB

#: How many times as much stderr is read while a client may be waiting for an answer.
ATTENDED_FACTOR = 8

#: How many unused processes may be ended to make room for one.
CAPACITY_TRIES = 8

#: How many processes of a server may go on starting although their clients have left.
UNATTENDED_STARTS = 1

#: The search for the next session that may give way: how many sessions within their grace
#: it looks at, and the sessions of how many other addresses, those with the most first.
ABANDONED_LOOKS = 32
ABANDONED_ADDRESSES = 16

#: How long questions of a legacy server are collected before the client gets them.
COLLECT_SECONDS = 0.05

#: The pause before a message that a process did not take is sent again.
SAY_AGAIN_SECONDS = 0.5

#: How long a legacy server may take to answer a cancelled request before its process is ended.
CANCEL_SECONDS = 1.0

#: The pause before a subscription is renewed when its process has ended.
RELISTEN_SECONDS = 1.0

#: How many processes and containers without a tag the watchdog keeps.
MAX_RECORDS = 4096

#: How many directories of a server (`private_tmp`) are emptied at a time, how many more wait
#: for that, how long a session waits for the end of it, and how long the work itself may take.
PRIVATE_TMP_REMOVALS = 2
PRIVATE_TMP_WAITING = 1000
PRIVATE_TMP_SECONDS = 60.0

#: How many killed bridges one start cleans up after; a later start continues.
MAX_CLEANUPS = 64

#: How long cleaning up after one of them may take.
CLEANUP_SECONDS = 180.0

#: How many lines about sessions (SIGUSR1) are logged in one turn of the reactor.
REPORTED_LINES = 50

#: The access log is written in batches: how long a line may wait, how many lines may, and
#: how many characters that clients have sent may be in them.
ACCESS_LOG_SECONDS = 0.1
ACCESS_LOG_LINES = 256
ACCESS_LOG_CHARACTERS = 64 * 1024

#: A line of the log in JSON: how many fields it has, how many characters of its message, of
#: another field and of a traceback, and how long it may be, as the journal cuts longer ones;
#: and how many characters each field keeps of a line that is longer all the same.
LOG_FIELDS = 32
LOG_MESSAGE_CHARS = 8192
LOG_FIELD_CHARS = 2048
LOG_TRACEBACK_CHARS = 16 * 1024
LOG_LINE_BYTES = 48_000
LOG_SHORT_CHARS = 1000

#: The log says that a session waits for the first answer of its process after this time, then
#: after twice as long again, and so on, up to this interval.
STARTING_LOG_SECONDS = 5.0
MAX_STARTING_LOG_SECONDS = 300.0

#: How long large messages are parsed in one turn of the reactor, all of them together.
LARGE_TURN_SECONDS = 0.005

#: The threshold of the oldest generation (`gc.set_threshold`), which Python sets to 10: a full
#: garbage collection comes after more than so many of the middle generation.  One of these
#: comes after forty sessions have been opened, or ten thousand requests served.
COLLECTIONS_BEFORE_FULL = 100

#: Blocks of memory of this size or more are mapped on their own (`M_MMAP_THRESHOLD`): they grow
#: without being copied, and are returned to the system when they are freed.
MAPPED_BYTES = 4 * MIB

#: Memory is returned to the system after a request of this size, or the end of this many
#: processes, and this often at most.
TRIM_BYTES = MIB
TRIM_SESSIONS = 100
TRIM_SECONDS = 2.0

#: One session may use this part of `max_response_bytes` (one eighth) for unread answers, and
#: at least one message.
SESSION_SHARE = 8

#: A message of a client, a line of a backend or a queue above this size counts as large.
SMALL_BYTES = 64 * 1024

#: About how much memory a stored event takes in addition to its text.
EVENT_OVERHEAD = 400

#: The part of `max_response_bytes` (1/256) that is freed at a time by dropping events.
EVENTS_DROPPED = 256

#: While `max_response_bytes` is reached, a client that needs longer than this to read what
#: waits for it counts as slow; and how often clients are checked for that.
SLOW_SECONDS = 5.0
FULL_SECONDS = 1.0

#: They are also checked when unread answers have grown by this part (1/64) of the limit.
FULL_GROWTH = 64

#: Commands of a container engine: how long each may take, how much of its output is read,
#: and how many run at a time for one server.
ENGINE_COMMAND_SECONDS = 30.0
ENGINE_OUTPUT_BYTES = 64 * 1024
ENGINE_COMMANDS = 4

#: The pause before an engine is asked again whether a container is gone, at first and at most.
ENGINE_PAUSE_SECONDS = 0.1
MAX_ENGINE_PAUSE_SECONDS = 10.0

#: The number of failed removals of a container after which the log says so.
REMOVALS_BEFORE_WARNING = 3

#: How long an engine may go on creating a container after its CLI was interrupted.
CONTAINER_BIRTH_SECONDS = 5.0

#: How long stopping the bridge may take in addition to the graces of its servers, and how
#: much longer if servers run in containers.
STOP_SLACK_SECONDS = 5.0
CONTAINER_STOP_SECONDS = 10.0

#: How many idle connections of an address one search finds.  If there are fewer, the next
#: search waits this long for each connection of the address: as a search takes a
#: microsecond for each, searches take at most a tenth of the time.
IDLE_CANDIDATES = 64
IDLE_LOOK_SECONDS = 0.00001

#: How long a connection that gives way may take to close; until then it is not counted.
GIVE_WAY_SECONDS = 1.0

#: In how many addresses an idle connection is searched for, those with the most first.
IDLE_ADDRESSES = 8

#: How far the clocks of the bridge and of an authorization server may differ.
TOKEN_LEEWAY_SECONDS = 30.0

#: How long it may take to find out who has sent a request: longer than until the keys of an
#: issuer may be fetched again, and that fetch.
AUTHENTICATION_SECONDS = 60.0

#: How long sessions of a server that was removed from the settings may go on.
REMOVED_SECONDS = 3600.0

"""
Requests for something that is denied, in spellings that one parser or another may understand.

In each, META stands for a `_meta`.  This module imports nothing of mcpbridge.
"""

from __future__ import annotations

#: More bytes than are read at once.
PADDING = b" " * 70_000
#: Calls of the tool `denied`.
SPELLINGS: dict[str, bytes] = {
    "plain": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"denied",META}}',
    "members in another order": b'{"params":{META,"name":"denied"},"method":"tools/call","id":7,'
    b'"jsonrpc":"2.0"}',
    "spaces": b' \t{ "jsonrpc" : "2.0" , "id" : 7 , "method" : "tools/call" , "params" : '
    b'{ META , "name" : "denied" } } ',
    "line ends": b'\r\n{"jsonrpc":"2.0",\n"id":7,"method":\r"tools/call","params":\n'
    b'{"name":\n"denied",META}}\n',
    "an escape in the name": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":'
    b'{"name":"\\u0064enied",META}}',
    "all of the name escaped": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":'
    b'{"name":"\\u0064\\u0065\\u006e\\u0069\\u0065\\u0064",META}}',
    "an escape in the method": b'{"jsonrpc":"2.0","id":7,"method":"tools\\u002fcall","params":'
    b'{"name":"denied",META}}',
    "an escaped slash": b'{"jsonrpc":"2.0","id":7,"method":"tools\\/call","params":'
    b'{"name":"denied",META}}',
    "an escape in `name`": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":'
    b'{"n\\u0061me":"denied",META}}',
    "an escape in `method`": b'{"jsonrpc":"2.0","id":7,"m\\u0065thod":"tools/call","params":'
    b'{"name":"denied",META}}',
    "an escape in `params`": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","p\\u0061rams":'
    b'{"name":"denied",META}}',
    "the name twice, last": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":'
    b'{"name":"allowed","name":"denied",META}}',
    "the name twice, first": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":'
    b'{"name":"denied","name":"allowed",META}}',
    "the name twice, one escaped": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":'
    b'{"name":"allowed","n\\u0061me":"denied",META}}',
    "the params twice, last": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":'
    b'{"name":"allowed",META},"params":{"name":"denied",META}}',
    "the params twice, first": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":'
    b'{"name":"denied",META},"params":{"name":"allowed",META}}',
    "the method twice, last": b'{"jsonrpc":"2.0","id":7,"method":"ping","method":"tools/call",'
    b'"params":{"name":"denied",META}}',
    "the method twice, first": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","method":"ping",'
    b'"params":{"name":"denied",META}}',
    "`Name`": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"Name":"denied",META}}',
    "`name` and `NAME`": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":'
    b'{"name":"allowed","NAME":"denied",META}}',
    "`NAME` and `name`": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":'
    b'{"NAME":"denied","name":"allowed",META}}',
    "`Method`": b'{"jsonrpc":"2.0","id":7,"Method":"tools/call","params":{"name":"denied",META}}',
    "`method` and `METHOD`": b'{"jsonrpc":"2.0","id":7,"method":"ping","METHOD":"tools/call",'
    b'"params":{"name":"denied",META}}',
    "`Params`": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","Params":{"name":"denied",META}}',
    "`params` and `PARAMS`": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":'
    b'{"name":"allowed",META},"PARAMS":{"name":"denied"}}',
    "`params` with a long s": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":'
    b'{"name":"allowed",META},"param\xc5\xbf":{"name":"denied"}}',
    "an escaped long s": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":'
    b'{"name":"allowed",META},"param\\u017f":{"name":"denied"}}',
    "`DENIED`": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"DENIED",META}}',
    "`Denied`": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"Denied",META}}',
    "space before the name": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":'
    b'{"name":" denied",META}}',
    "space behind the name": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":'
    b'{"name":"denied\\t\\n ",META}}',
    "a no-break space": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":'
    b'{"name":"\\u00a0denied",META}}',
    "full width letters": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":'
    b'{"name":"\\uff44\\uff45\\uff4e\\uff49\\uff45\\uff44",META}}',
    "mathematical letters": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":'
    b'{"name":"\xf0\x9d\x90\x9d\xf0\x9d\x90\x9e\xf0\x9d\x90\xa7\xf0\x9d\x90\xa2'
    b'\xf0\x9d\x90\x9e\xf0\x9d\x90\x9d",META}}',
    "what follows a NUL": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":'
    b'{"name":"denied\\u0000allowed",META}}',
    "`Tools/Call`": b'{"jsonrpc":"2.0","id":7,"method":"Tools/Call","params":'
    b'{"name":"denied",META}}',
    "space around the method": b'{"jsonrpc":"2.0","id":7,"method":" tools/call\\t","params":'
    b'{"name":"denied",META}}',
    "a method in full width": b'{"jsonrpc":"2.0","id":7,"method":"tools\\uff0fcall","params":'
    b'{"name":"denied",META}}',
    "a batch": b'[{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"denied",META}}]',
    "second in a batch": b'[{"jsonrpc":"2.0","id":6,"method":"ping"},{"jsonrpc":"2.0","id":7,'
    b'"method":"tools/call","params":{"name":"denied",META}}]',
    "a batch in a batch": b'[[{"jsonrpc":"2.0","id":7,"method":"tools/call","params":'
    b'{"name":"denied",META}}]]',
    "`DENIED` in a batch": b'[{"jsonrpc":"2.0","id":7,"method":"tools/call","params":'
    b'{"name":"DENIED",META}},{"jsonrpc":"2.0","method":"notifications/cancelled"}]',
    "the name twice in a batch": b'[{"jsonrpc":"2.0","id":7,"method":"tools/call","params":'
    b'{"name":"denied","name":"allowed"}}]',
    "a notification": b'{"jsonrpc":"2.0","method":"tools/call","params":{"name":"denied",META}}',
    "a notification in a batch": b'[{"jsonrpc":"2.0","method":"tools/call","params":'
    b'{"name":"denied"}}]',
    "an id that is text": b'{"jsonrpc":"2.0","id":"tools/list","method":"tools/call","params":'
    b'{"name":"denied",META}}',
    "an id that is a fraction": b'{"jsonrpc":"2.0","id":7.5,"method":"tools/call","params":'
    b'{"name":"denied",META}}',
    "an id with an exponent": b'{"jsonrpc":"2.0","id":7e0,"method":"tools/call","params":'
    b'{"name":"denied",META}}',
    "an id that is null": b'{"jsonrpc":"2.0","id":null,"method":"tools/call","params":'
    b'{"name":"denied",META}}',
    "the id twice": b'{"jsonrpc":"2.0","id":7,"id":8,"method":"tools/call","params":'
    b'{"name":"denied",META}}',
    "a result beside it": b'{"jsonrpc":"2.0","id":7,"result":{},"method":"tools/call","params":'
    b'{"name":"denied",META}}',
    "a byte order mark": b'\xef\xbb\xbf{"jsonrpc":"2.0","id":7,"method":"tools/call","params":'
    b'{"name":"denied",META}}',
    "UTF-16": '{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"denied"}}'.encode(
        "utf-16"
    ),
    "trailing data": b'{"jsonrpc":"2.0","id":6,"method":"ping"}{"jsonrpc":"2.0","id":7,"method":'
    b'"tools/call","params":{"name":"denied",META}}',
    "a second line": b'{"jsonrpc":"2.0","id":6,"method":"ping"}\n{"jsonrpc":"2.0","id":7,"method":'
    b'"tools/call","params":{"name":"denied",META}}',
    "a message in a message": b'{"jsonrpc":"2.0","id":7,"method":"ping","params":{"method":'
    b'"tools/call","params":{"name":"denied"},META}}',
    "a task": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"denied",'
    b'"task":{"ttl":60000},META}}',
    "a retry": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"denied",'
    b'"inputResponses":{},"requestState":"x",META}}',
    "arguments with names": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"arguments":'
    b'{"name":"allowed","method":"ping"},"name":"denied",META}}',
    "no `jsonrpc`": b'{"id":7,"method":"tools/call","params":{"name":"denied",META}}',
    "`_meta` first": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{META,"_meta":'
    b'{"name":"allowed"},"name":"denied"}}',
    "a control character": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":'
    b'{"name":"denied\x01",META}}',
    "a lone surrogate": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":'
    b'{"name":"denied","x":"\\ud800",META}}',
    "deep arguments": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"arguments":'
    + b'{"a":' * 300
    + b"1"
    + b"}" * 300
    + b',"name":"denied",META}}',
    "padding before": PADDING
    + b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"denied",META}}',
    "padding within": b'{"jsonrpc":"2.0","id":7,"method":"tools/call",'
    + PADDING
    + b'"params":{"name":"denied",META}}',
    "large arguments": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"arguments":'
    b'{"x":"' + b"x" * 70_000 + b'"},"name":"denied",META}}',
    "padding, the name twice": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":'
    b'{"name":"denied",' + PADDING + b'"name":"allowed",META}}',
    "padding, `NAME`": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":'
    b'{"name":"allowed",' + PADDING + b'"NAME":"denied",META}}',
    "padding in a batch": b'[{"jsonrpc":"2.0","id":7,"method":"tools/call",'
    + PADDING
    + b'"params":{"name":"denied",META}}]',
    "a name with much space behind it": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":'
    b'{"name":"denied' + b" " * 20_000 + b'",META}}',
    "the same in two megabytes": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":'
    b'"denied' + b" " * 20_000 + b'",' + PADDING * 30 + b"META}}",
    "two megabytes": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"denied",'
    + PADDING * 30
    + b"META}}",
    "a megabyte": b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"denied",'
    + PADDING * 20
    + b"META}}",
}
OTHERS: dict[str, bytes] = {
    "a denied prompt": b'{"jsonrpc":"2.0","id":7,"method":"prompts/get","params":{"name":"secret",'
    b"META}}",
    "a denied resource": b'{"jsonrpc":"2.0","id":7,"method":"resources/read","params":'
    b'{"uri":"file:///secret/x",META}}',
    **{
        f"the resource {uri}": b'{"jsonrpc":"2.0","id":7,"method":"resources/read","params":'
        b'{"uri":"%b",META}}' % uri.encode()
        for uri in (
            "FILE:///secret/x",
            "file:///%73ecret/x",
            "file:///Secret/X",
            "file:///pub/../secret/x",
            "file:///pub/%2e%2e/secret/x",
            "file:///pub/..%2fsecret/x",
            "file:////secret//x",
            "file://localhost/secret/x",
            "file:/secret/x",
            " file:///secret/x",
            "file:///pub/a?/../../../secret/x",
            "file:///secret/./x",
            "file:///pub/..\\\\secret/x",
        )
    },
    "a subscription": b'{"jsonrpc":"2.0","id":7,"method":"resources/subscribe","params":'
    b'{"uri":"file:///secret/x",META}}',
    "a completion for a prompt": b'{"jsonrpc":"2.0","id":7,"method":"completion/complete","params":'
    b'{"ref":{"type":"ref/prompt","name":"secret"},"argument":{"name":"a","value":""},META}}',
    "a completion for a resource": b'{"jsonrpc":"2.0","id":7,"method":"completion/complete",'
    b'"params":{"ref":{"type":"ref/resource","uri":"file:///secret/{x}"},'
    b'"argument":{"name":"x","value":""},META}}',
    "a completion, twice": b'{"jsonrpc":"2.0","id":7,"method":"completion/complete",'
    b'"params":{"ref":{"type":"ref/prompt","name":"secret","name":"open"},'
    b'"argument":{"name":"x","value":""},META}}',
}
EVERYTHING = {**SPELLINGS, **OTHERS}

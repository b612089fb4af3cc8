r"""
Streams of every kind of block and delta that the API has, and for each the message that the same request has
without ``stream``, both written by hand.

An entry's bytes are literal, so that spelling counts too: ``1.0``, ``1e400``, integers past 2**64, ``\u00e9``
beside ``é``.
"""

from __future__ import annotations

import attrs


def event(name: str, data: str = "{}") -> bytes:
    """One server-sent event."""
    return f"event: {name}\ndata: {data}\n\n".encode()


def start(model: str = "claude-opus-5", usage: str = '{"input_tokens":10,"output_tokens":1}', more: str = "") -> bytes:
    """``message_start`` with an empty message; `more` members stand behind the others, as ``,"container":null``."""
    message = (
        f'{{"id":"msg_01","type":"message","role":"assistant","model":"{model}","content":[],'
        f'"stop_reason":null,"stop_sequence":null,"usage":{usage}{more}}}'
    )
    return event("message_start", f'{{"type":"message_start","message":{message}}}')


def block(index: int, content_block: str) -> bytes:
    return event(
        "content_block_start",
        f'{{"type":"content_block_start","index":{index},"content_block":{content_block}}}',
    )


def delta(index: int, value: str) -> bytes:
    return event("content_block_delta", f'{{"type":"content_block_delta","index":{index},"delta":{value}}}')


def text(index: int, *pieces: str) -> bytes:
    """``text_delta`` events; a piece is the inside of a JSON string."""
    return b"".join(delta(index, f'{{"type":"text_delta","text":"{piece}"}}') for piece in pieces)


def partial_json(index: int, *pieces: str) -> bytes:
    """``input_json_delta`` events; a piece is JSON text, escaped here once more."""
    quoted = [piece.replace("\\", "\\\\").replace('"', '\\"') for piece in pieces]
    return b"".join(delta(index, f'{{"type":"input_json_delta","partial_json":"{piece}"}}') for piece in quoted)


def stop(index: int) -> bytes:
    return event("content_block_stop", f'{{"type":"content_block_stop","index":{index}}}')


def end(
    stop_reason: str = '"end_turn"',
    usage: str = '{"output_tokens":20}',
    more_delta: str = "",
    more: str = "",
    stop_sequence: str = "null",
) -> bytes:
    """``message_delta`` and ``message_stop``."""
    return event(
        "message_delta",
        f'{{"type":"message_delta","delta":{{"stop_reason":{stop_reason},"stop_sequence":{stop_sequence}'
        f'{more_delta}}},"usage":{usage}{more}}}',
    ) + event("message_stop", '{"type":"message_stop"}')


def whole(index: int, content_block: str) -> bytes:
    """A block that comes in one piece."""
    return block(index, content_block) + stop(index)


PING = event("ping", '{"type":"ping"}')
TEXT_BLOCK = '{"type":"text","text":""}'


def message(
    content: str,
    stop_reason: str = '"end_turn"',
    usage: str = '{"input_tokens":10,"output_tokens":20}',
    more: str = "",
    stop_sequence: str = "null",
    model: str = "claude-opus-5",
) -> bytes:
    """The non-streaming answer."""
    return (
        f'{{"id":"msg_01","type":"message","role":"assistant","model":"{model}","content":[{content}],'
        f'"stop_reason":{stop_reason},"stop_sequence":{stop_sequence},"usage":{usage}{more}}}'
    ).encode()


@attrs.frozen(kw_only=True)
class Entry:
    """A stream and what it comes to."""

    name: str
    stream: bytes
    """The body of the event stream."""
    expected: bytes
    """The body of the answer without ``stream``. The order of members is the one that a fold arrives at."""
    beta: bool = False
    """Only the SDK's beta accumulator knows what is in it."""
    unknown_to_sdk: tuple[str, ...] = ()
    """Top-level members and ``usage.`` counters that come late in the stream, and that the SDK drops."""


WEB_SEARCH_RESULT = (
    '{"type":"web_search_tool_result","tool_use_id":"srvtoolu_01","content":[{"type":"web_search_result",'
    '"title":"Swifts","url":"https://example.org/swifts","encrypted_content":"EqgfCioIARgB","page_age":null}]}'
)
WEB_SEARCH_ERROR = (
    '{"type":"web_search_tool_result","tool_use_id":"srvtoolu_02",'
    '"content":{"type":"web_search_tool_result_error","error_code":"max_uses_exceeded"}}'
)
WEB_FETCH_RESULT = (
    '{"type":"web_fetch_tool_result","tool_use_id":"srvtoolu_03","content":{"type":"web_fetch_result",'
    '"url":"https://example.org/a","content":{"type":"document","source":{"type":"text","media_type":"text/plain",'
    '"data":"line\\none"},"title":"A","citations":{"enabled":true}},"retrieved_at":"2026-11-01T10:00:00Z"}}'
)
CODE_RESULT = (
    '{"type":"code_execution_tool_result","tool_use_id":"srvtoolu_04","content":{"type":"code_execution_result",'
    '"stdout":"4\\n","stderr":"","return_code":0,"content":[]}}'
)
BASH_RESULT = (
    '{"type":"bash_code_execution_tool_result","tool_use_id":"srvtoolu_05","content":{'
    '"type":"bash_code_execution_result","stdout":"ok\\n","stderr":"","return_code":0,'
    '"content":[{"type":"bash_code_execution_output","file_id":"file_01"}]}}'
)
EDITOR_RESULT = (
    '{"type":"text_editor_code_execution_tool_result","tool_use_id":"srvtoolu_06","content":{'
    '"type":"text_editor_code_execution_create_result","is_file_update":false}}'
)
TOOL_SEARCH_RESULT = (
    '{"type":"tool_search_tool_result","tool_use_id":"srvtoolu_07","content":{"type":"tool_search_tool_search_result",'
    '"tool_references":[{"type":"tool_reference","tool_name":"get_weather"}]}}'
)
MCP_RESULT = (
    '{"type":"mcp_tool_result","tool_use_id":"mcptoolu_01","is_error":false,'
    '"content":[{"type":"text","text":"12 open","citations":null}]}'
)
MCP_LISTING = (
    '{"type":"mcp_tool_listing","mcp_server_name":"tracker","tools":[{"name":"search",'
    '"description":"Find tickets","input_schema":{"type":"object","properties":{"q":{"type":"string"}}}}]}'
)
ADVISOR_RESULT = (
    '{"type":"advisor_tool_result","tool_use_id":"srvtoolu_08",'
    '"content":{"type":"advisor_result","text":"Look at the lock.","stop_reason":"end_turn"}}'
)
REDACTED = '{"type":"redacted_thinking","data":"EmwKAhgBEgy3va3pzix/LafPsn4aDFIT2Xlxh0L5L8rLVyIwxtE3rAFBa8cr3qpP"}'
FALLBACK = (
    '{"type":"fallback","from":{"model":"claude-opus-5"},"to":{"model":"claude-sonnet-5"},'
    '"trigger":{"type":"refusal","category":"cyber","explanation":null}}'
)

CHAR_LOCATION = (
    '{"type":"char_location","cited_text":"green.","document_index":0,"document_title":"Grass",'
    '"start_char_index":0,"end_char_index":6,"file_id":null}'
)
PAGE_LOCATION = (
    '{"type":"page_location","cited_text":"p","document_index":1,"document_title":null,'
    '"start_page_number":1,"end_page_number":2,"file_id":"file_02"}'
)
BLOCK_LOCATION = (
    '{"type":"content_block_location","cited_text":"c","document_index":2,"document_title":"T",'
    '"start_block_index":0,"end_block_index":1,"file_id":null}'
)
WEB_LOCATION = (
    '{"type":"web_search_result_location","cited_text":"w","encrypted_index":"Eo8BCioIAhgB","title":"Swifts",'
    '"url":"https://example.org/swifts"}'
)
SEARCH_LOCATION = (
    '{"type":"search_result_location","cited_text":"s","search_result_index":0,"source":"https://example.org",'
    '"start_block_index":0,"end_block_index":1,"title":"S"}'
)

CORPUS: tuple[Entry, ...] = (
    Entry(
        name="text",
        stream=start()
        + block(0, TEXT_BLOCK)
        + PING
        + text(0, "Hello", ", ", "wörld 🌦️ ", "\\u00e9\\n", '\\"quoted\\"', " \\\\", "/ \\/ ", "\\ud83d\\ude00", "")
        + stop(0)
        + end(),
        expected=message('{"type":"text","text":"Hello, wörld 🌦️ \\u00e9\\n\\"quoted\\" \\\\/ \\/ \\ud83d\\ude00"}'),
    ),
    Entry(
        name="text-that-the-start-began",
        stream=start() + block(0, '{"type":"text","text":"Once"}') + text(0, " upon") + stop(0) + end(),
        expected=message('{"type":"text","text":"Once upon"}'),
    ),
    Entry(
        name="no-content",
        stream=start()
        + end(
            '"refusal"',
            more_delta=',"stop_details":{"type":"refusal","category":"cyber","explanation":"No."}',
        ),
        expected=message(
            "",
            '"refusal"',
            more=',"stop_details":{"type":"refusal","category":"cyber","explanation":"No."}',
        ),
    ),
    Entry(
        name="several-texts",
        stream=start()
        + block(0, TEXT_BLOCK)
        + text(0, "a")
        + stop(0)
        + block(1, TEXT_BLOCK)
        + text(1, "b")
        + stop(1)
        + whole(2, TEXT_BLOCK)
        + end(),
        expected=message('{"type":"text","text":"a"},{"type":"text","text":"b"},{"type":"text","text":""}'),
    ),
    Entry(
        name="stop-sequence",
        stream=start()
        + block(0, TEXT_BLOCK)
        + text(0, "one, two")
        + stop(0)
        + end('"stop_sequence"', stop_sequence='"\\n\\nHuman:"'),
        expected=message('{"type":"text","text":"one, two"}', '"stop_sequence"', stop_sequence='"\\n\\nHuman:"'),
    ),
    Entry(
        name="dialect-of-the-stream",
        stream=b"\xef\xbb\xbf: hello\r\nid: 1\r\nretry: 3000\r\n"
        + start().replace(b"\n", b"\r\n")
        + b": keep-alive\r\n\r\n"
        + event("something_new", '{"type":"something_new","index":0,"delta":{"type":"text_delta","text":"no"}}')
        + event("something_newer", "not even JSON")
        + block(0, TEXT_BLOCK).replace(b"data: ", b"data:")
        + PING
        + b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"unnamed"}}\n\n'
        + text(0, "Hi").replace(b',"delta"', b'\ndata: ,"delta"')
        + b"event: nothing\n\n"
        + stop(0).replace(b"\n", b"\r")
        + end(),
        expected=message('{"type":"text","text":"Hi"}'),
    ),
    Entry(
        name="citations",
        stream=start()
        + block(0, '{"type":"text","text":"","citations":null}')
        + text(0, "Grass ")
        + delta(0, f'{{"type":"citations_delta","citation":{CHAR_LOCATION}}}')
        + text(0, "is green.")
        + delta(0, f'{{"type":"citations_delta","citation":{PAGE_LOCATION}}}')
        + stop(0)
        + block(1, TEXT_BLOCK)
        + delta(1, f'{{"type":"citations_delta","citation":{BLOCK_LOCATION}}}')
        + delta(1, f'{{"type":"citations_delta","citation":{WEB_LOCATION}}}')
        + text(1, "So.")
        + stop(1)
        + block(2, f'{{"citations":[{CHAR_LOCATION}],"type":"text","text":""}}')
        + delta(2, f'{{"type":"citations_delta","citation":{SEARCH_LOCATION}}}')
        + text(2, "Thus.")
        + stop(2)
        + whole(3, '{"type":"text","text":"none","citations":null}')
        + end(),
        expected=message(
            f'{{"type":"text","text":"Grass is green.","citations":[{CHAR_LOCATION},{PAGE_LOCATION}]}},'
            f'{{"type":"text","text":"So.","citations":[{BLOCK_LOCATION},{WEB_LOCATION}]}},'
            f'{{"citations":[{CHAR_LOCATION},{SEARCH_LOCATION}],"type":"text","text":"Thus."}},'
            '{"type":"text","text":"none","citations":null}'
        ),
    ),
    Entry(
        name="thinking",
        stream=start()
        + block(0, '{"type":"thinking","thinking":"","signature":""}')
        + delta(0, '{"type":"thinking_delta","thinking":"Let me see.\\n","estimated_tokens":4}')
        + delta(0, '{"type":"thinking_delta","thinking":"2 + 2"}')
        + delta(0, '{"type":"signature_delta","signature":"EqQBCgIYAhIM"}')
        + delta(0, '{"type":"signature_delta","signature":"EqQBCgIYAhIM1gbcDa9GJwZA2b3h"}')
        + stop(0)
        + whole(1, REDACTED)
        + block(2, TEXT_BLOCK)
        + text(2, "4")
        + stop(2)
        + end(usage='{"output_tokens":20,"output_tokens_details":{"thinking_tokens":12}}'),
        expected=message(
            '{"type":"thinking","thinking":"Let me see.\\n2 + 2","signature":"EqQBCgIYAhIM1gbcDa9GJwZA2b3h"},'
            + REDACTED
            + ',{"type":"text","text":"4"}',
            usage='{"input_tokens":10,"output_tokens":20,"output_tokens_details":{"thinking_tokens":12}}',
        ),
    ),
    Entry(
        name="thinking-not-shown",
        stream=start()
        + block(0, '{"type":"thinking","thinking":"","signature":""}')
        + delta(0, '{"type":"signature_delta","signature":"Eo4BCkYI"}')
        + stop(0)
        + end(),
        expected=message('{"type":"thinking","thinking":"","signature":"Eo4BCkYI"}'),
    ),
    Entry(
        name="tools",
        stream=start()
        + block(0, TEXT_BLOCK)
        + text(0, "I look.")
        + stop(0)
        + block(1, '{"type":"tool_use","id":"toolu_01","name":"get_weather","input":{}}')
        + partial_json(
            1, "", '{"ci', 'ty": "Z\\u00', 'fcrich", "sky": "\\ud83', 'd\\ude00 🌦️", "q": "a \\', '"b\\" \\\\ c"'
        )
        + PING
        + partial_json(1, ', "days": [1, 2', ', 3], "none": nu', 'll, "deep": {"a": {"b": [tr', "ue, {}]}}}")
        + stop(1)
        + block(2, '{"type":"tool_use","id":"toolu_02","name":"now","input":{},"caller":{"type":"direct"}}')
        + partial_json(2, "")
        + stop(2)
        + block(3, '{"type":"tool_use","id":"toolu_03","name":"ping","input":{}}')
        + partial_json(3, "{}")
        + stop(3)
        + whole(4, '{"type":"tool_use","id":"toolu_04","name":"whole","input":{"a":1}}')
        + end('"tool_use"'),
        expected=message(
            '{"type":"text","text":"I look."},'
            '{"type":"tool_use","id":"toolu_01","name":"get_weather","input":{"city": "Z\\u00fcrich", '
            '"sky": "\\ud83d\\ude00 🌦️", "q": "a \\"b\\" \\\\ c", "days": [1, 2, 3], "none": null, '
            '"deep": {"a": {"b": [true, {}]}}}},'
            '{"type":"tool_use","id":"toolu_02","name":"now","input":{},"caller":{"type":"direct"}},'
            '{"type":"tool_use","id":"toolu_03","name":"ping","input":{}},'
            '{"type":"tool_use","id":"toolu_04","name":"whole","input":{"a":1}}',
            '"tool_use"',
        ),
    ),
    Entry(
        name="numbers",
        stream=start()
        + block(0, '{"type":"tool_use","id":"toolu_01","name":"count","input":{}}')
        + partial_json(0, '{"big": 1234567890123', '45678901234567890, "neg": -18446744073709551617, "one": 1', ".0, ")
        + partial_json(0, '"exp": 1E+2, "huge": 1e4', '00, "zero": -0.0, "third": 0.33333333333333333333}')
        + stop(0)
        + whole(1, '{"type":"tool_use","id":"toolu_02","name":"count","input":{"n":98765432109876543210987,"f":1.0}}')
        + end('"tool_use"'),
        expected=message(
            '{"type":"tool_use","id":"toolu_01","name":"count","input":{"big": 123456789012345678901234567890, '
            '"neg": -18446744073709551617, "one": 1.0, "exp": 1E+2, "huge": 1e400, "zero": -0.0, '
            '"third": 0.33333333333333333333}},'
            '{"type":"tool_use","id":"toolu_02","name":"count","input":{"n":98765432109876543210987,"f":1.0}}',
            '"tool_use"',
        ),
    ),
    Entry(
        name="tool-input-cut-off",
        stream=start()
        + block(0, '{"type":"tool_use","id":"toolu_01","name":"whole","input":{}}')
        + partial_json(0, '{"a": 1}')
        + stop(0)
        + block(1, '{"type":"tool_use","id":"toolu_02","name":"write","input":{}}')
        + partial_json(
            1, '{"path": "/a", "n": 123456789012345678901234567890, "edits": [{"old": "x", "new": "half a sen'
        )
        + stop(1)
        + end('"max_tokens"'),
        expected=message(
            '{"type":"tool_use","id":"toolu_01","name":"whole","input":{"a": 1}},'
            '{"type":"tool_use","id":"toolu_02","name":"write","input":{"path": "/a", '
            '"n": 123456789012345678901234567890, "edits": [{"old": "x"}]}}',
            '"max_tokens"',
        ),
    ),
    Entry(
        name="tool-input-cut-off-at-once",
        stream=start()
        + block(0, '{"type":"tool_use","id":"toolu_01","name":"write","input":{}}')
        + partial_json(0, '{"pa')
        + stop(0)
        + end('"max_tokens"'),
        expected=message('{"type":"tool_use","id":"toolu_01","name":"write","input":{}}', '"max_tokens"'),
    ),
    Entry(
        name="server-tools",
        stream=start(more=',"container":null')
        + block(0, '{"type":"server_tool_use","id":"srvtoolu_01","name":"web_search","input":{}}')
        + partial_json(0, '{"query', '": "swifts"}')
        + stop(0)
        + whole(1, WEB_SEARCH_RESULT)
        + whole(2, WEB_SEARCH_ERROR)
        + whole(3, WEB_FETCH_RESULT)
        + block(
            4,
            '{"type":"server_tool_use","id":"srvtoolu_04","name":"code_execution","input":{},'
            '"caller":{"type":"direct"}}',
        )
        + partial_json(4, '{"code": "print(2 +', ' 2)\\n"}')
        + stop(4)
        + whole(5, CODE_RESULT)
        + whole(6, BASH_RESULT)
        + whole(7, EDITOR_RESULT)
        + whole(8, TOOL_SEARCH_RESULT)
        + whole(9, '{"type":"container_upload","file_id":"file_03"}')
        + end(
            '"pause_turn"',
            usage='{"output_tokens":20,"server_tool_use":{"web_search_requests":1,"web_fetch_requests":1}}',
            more_delta=',"container":{"id":"container_01","expires_at":"2026-11-01T11:00:00Z"}',
        ),
        expected=message(
            '{"type":"server_tool_use","id":"srvtoolu_01","name":"web_search","input":{"query": "swifts"}},'
            f"{WEB_SEARCH_RESULT},{WEB_SEARCH_ERROR},{WEB_FETCH_RESULT},"
            '{"type":"server_tool_use","id":"srvtoolu_04","name":"code_execution",'
            '"input":{"code": "print(2 + 2)\\n"},"caller":{"type":"direct"}},'
            f"{CODE_RESULT},{BASH_RESULT},{EDITOR_RESULT},{TOOL_SEARCH_RESULT},"
            '{"type":"container_upload","file_id":"file_03"}',
            '"pause_turn"',
            usage='{"input_tokens":10,"output_tokens":20,'
            '"server_tool_use":{"web_search_requests":1,"web_fetch_requests":1}}',
            more=',"container":{"id":"container_01","expires_at":"2026-11-01T11:00:00Z"}',
        ),
    ),
    Entry(
        name="container-that-message-delta-does-not-know",
        stream=start(more=',"container":{"id":"container_01","expires_at":"2026-11-01T11:00:00Z"}')
        + end(more_delta=',"container":null'),
        expected=message("", more=',"container":{"id":"container_01","expires_at":"2026-11-01T11:00:00Z"}'),
    ),
    Entry(
        name="mcp-and-advisor",
        beta=True,
        stream=start()
        + whole(0, MCP_LISTING)
        + block(1, '{"type":"mcp_tool_use","id":"mcptoolu_01","name":"search","server_name":"tracker","input":{}}')
        + partial_json(1, '{"q": "op', 'en", "limit": 18446744073709551616}')
        + stop(1)
        + whole(2, MCP_RESULT)
        + whole(3, '{"type":"server_tool_use","id":"srvtoolu_08","name":"advisor","input":{}}')
        + whole(4, ADVISOR_RESULT)
        + end(),
        expected=message(
            MCP_LISTING
            + ',{"type":"mcp_tool_use","id":"mcptoolu_01","name":"search","server_name":"tracker",'
            + '"input":{"q": "open", "limit": 18446744073709551616}},'
            + MCP_RESULT
            + ',{"type":"server_tool_use","id":"srvtoolu_08","name":"advisor","input":{}},'
            + ADVISOR_RESULT
        ),
    ),
    Entry(
        name="compaction",
        beta=True,
        stream=start(more=',"context_management":null')
        + block(0, '{"type":"compaction","content":null,"encrypted_content":null}')
        + delta(0, '{"type":"compaction_delta","content":"So far: ","encrypted_content":"EpA="}')
        + delta(0, '{"type":"compaction_delta","content":"So far: a proxy.","encrypted_content":"EpAB"}')
        + stop(0)
        + end(
            '"compaction"',
            usage='{"output_tokens":20,"iterations":[{"type":"compaction","input_tokens":9,"output_tokens":3,'
            '"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"cache_creation":null}]}',
            more=',"context_management":{"applied_edits":[{"type":"clear_tool_uses_20250919",'
            '"cleared_tool_uses":8,"cleared_input_tokens":50000}]},"input_transformations":null',
        ),
        expected=message(
            '{"type":"compaction","content":"So far: a proxy.","encrypted_content":"EpAB"}',
            '"compaction"',
            usage='{"input_tokens":10,"output_tokens":20,"iterations":[{"type":"compaction","input_tokens":9,'
            '"output_tokens":3,"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"cache_creation":null}]}',
            more=',"context_management":{"applied_edits":[{"type":"clear_tool_uses_20250919",'
            '"cleared_tool_uses":8,"cleared_input_tokens":50000}]}',
        ),
    ),
    Entry(
        name="compaction-that-failed",
        beta=True,
        stream=start()
        + block(0, '{"type":"compaction","content":"","encrypted_content":null,"signature":"Eq=="}')
        + delta(0, '{"type":"compaction_delta","content":null,"encrypted_content":null}')
        + stop(0)
        + end(),
        expected=message('{"type":"compaction","content":null,"encrypted_content":null,"signature":"Eq=="}'),
    ),
    Entry(
        name="fallback",
        beta=True,
        stream=start(more=',"input_transformations":[]')
        + whole(0, FALLBACK)
        + block(1, TEXT_BLOCK)
        + text(1, "Sure.")
        + stop(1)
        + end(
            usage='{"input_tokens":12,"output_tokens":20,"iterations":[{"type":"fallback_message",'
            '"model":"claude-sonnet-5","input_tokens":12,"output_tokens":20,"cache_creation_input_tokens":0,'
            '"cache_read_input_tokens":0,"cache_creation":null}]}',
            more=',"input_transformations":[{"type":"thinking_dropped","message_index":1,"content_index":0,'
            '"reason":"model_mismatch"}]',
        ),
        expected=message(
            FALLBACK + ',{"type":"text","text":"Sure."}',
            model="claude-sonnet-5",
            usage='{"input_tokens":12,"output_tokens":20,"iterations":[{"type":"fallback_message",'
            '"model":"claude-sonnet-5","input_tokens":12,"output_tokens":20,"cache_creation_input_tokens":0,'
            '"cache_read_input_tokens":0,"cache_creation":null}]}',
            more=',"input_transformations":[{"type":"thinking_dropped","message_index":1,"content_index":0,'
            '"reason":"model_mismatch"}]',
        ),
    ),
    Entry(
        name="usage",
        stream=start(
            usage='{"input_tokens":10,"cache_creation_input_tokens":5,"cache_read_input_tokens":700,'
            '"cache_creation":{"ephemeral_5m_input_tokens":5,"ephemeral_1h_input_tokens":0},"output_tokens":1,'
            '"service_tier":"standard","inference_geo":"eu","speed":"fast","server_tool_use":null}'
        )
        + event(
            "message_delta",
            '{"type":"message_delta","delta":{"stop_reason":null,"stop_sequence":null},"usage":{"output_tokens":7}}',
        )
        + end(
            usage='{"input_tokens":4,"cache_creation_input_tokens":null,"cache_read_input_tokens":0,'
            '"output_tokens":9,"server_tool_use":{"web_search_requests":2,"web_fetch_requests":0}}'
        ),
        expected=message(
            "",
            usage='{"input_tokens":4,"cache_creation_input_tokens":5,"cache_read_input_tokens":0,'
            '"cache_creation":{"ephemeral_5m_input_tokens":5,"ephemeral_1h_input_tokens":0},"output_tokens":9,'
            '"service_tier":"standard","inference_geo":"eu","speed":"fast",'
            '"server_tool_use":{"web_search_requests":2,"web_fetch_requests":0}}',
        ),
    ),
    Entry(
        name="what-nobody-knows-yet",
        unknown_to_sdk=("usage.carrots", "mood", "stop_colour"),
        stream=start(
            usage='{"input_tokens":10,"output_tokens":1,"hares":12345678901234567890123}',
            more=',"future":{"n":1.0,"m":1e400}',
        )
        + block(0, '{"type":"hologram","pixels":[1.0,2],"id":"h"}')
        + delta(0, '{"type":"hologram_delta","pixels":[3]}')
        + event("content_block_pause", '{"type":"content_block_pause","index":0}')
        + stop(0)
        + whole(1, '{"type":"text","text":"x","shade":{"a":[1]}}')
        + end(
            '"because"',
            usage='{"output_tokens":20,"carrots":3,"turnips":null}',
            more_delta=',"stop_colour":"red"',
            more=',"mood":{"good":true},"weather":null',
        ),
        expected=message(
            '{"type":"hologram","pixels":[1.0,2],"id":"h"},{"type":"text","text":"x","shade":{"a":[1]}}',
            '"because"',
            usage='{"input_tokens":10,"output_tokens":20,"hares":12345678901234567890123,"carrots":3}',
            more=',"future":{"n":1.0,"m":1e400},"stop_colour":"red","mood":{"good":true}',
        ),
    ),
    Entry(
        name="context-window-exceeded",
        stream=start() + block(0, TEXT_BLOCK) + text(0, "too long") + stop(0) + end('"model_context_window_exceeded"'),
        expected=message('{"type":"text","text":"too long"}', '"model_context_window_exceeded"'),
    ),
)

BY_NAME = {entry.name: entry for entry in CORPUS}


@attrs.frozen(kw_only=True)
class Failure:
    """A stream that is no message."""

    name: str
    stream: bytes
    outcome: str
    """The name of the class in `twisted_proxy.wire.message` that says so."""
    status: int
    """What a client that did not ask for a stream is answered."""
    error_type: str = "api_error"


_BEGUN = start() + block(0, TEXT_BLOCK) + text(0, "Half a")
_TOOL = start() + block(0, '{"type":"tool_use","id":"toolu_01","name":"write","input":{}}')


def error(error_type: str, message: str = "Overloaded", more: str = "") -> bytes:
    """An ``error`` event; `more` members stand beside ``error``."""
    return event("error", f'{{"type":"error","error":{{"type":"{error_type}","message":"{message}"}}{more}}}')


STATUSES = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "conflict_error": 409,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
    "error_of_tomorrow": 500,
}

FAILURES: tuple[Failure, ...] = (
    *(
        Failure(
            name=f"error-{error_type}",
            stream=_BEGUN + error(error_type),
            outcome="ErrorEvent",
            status=status,
            error_type=error_type,
        )
        for error_type, status in STATUSES.items()
    ),
    Failure(
        name="error-at-once",
        stream=error("overloaded_error"),
        outcome="ErrorEvent",
        status=529,
        error_type="overloaded_error",
    ),
    Failure(name="nothing", stream=b"", outcome="Truncated", status=502),
    Failure(name="pings-only", stream=PING + b": hello\n\n", outcome="Truncated", status=502),
    Failure(name="cut-in-a-block", stream=_BEGUN, outcome="Truncated", status=502),
    Failure(name="cut-in-an-event", stream=_BEGUN + stop(0) + end()[:40], outcome="Truncated", status=502),
    Failure(
        name="cut-before-message-stop",
        stream=_BEGUN + stop(0) + end().removesuffix(event("message_stop", '{"type":"message_stop"}')),
        outcome="Truncated",
        status=502,
    ),
    Failure(
        name="message-stop-unterminated",
        stream=(_BEGUN + stop(0) + end()).removesuffix(b"\n"),
        outcome="Truncated",
        status=502,
    ),
    Failure(
        name="no-message-start",
        stream=(_BEGUN + stop(0) + end()).removeprefix(start()),
        outcome="Truncated",
        status=502,
    ),
    Failure(
        name="tool-input-that-does-not-parse",
        stream=_TOOL + partial_json(0, '{"path": /a}') + stop(0) + end('"tool_use"'),
        outcome="BadToolInput",
        status=502,
    ),
    Failure(
        name="tool-input-that-just-stops",
        stream=_TOOL + partial_json(0, '{"path": "/a", "text": "half') + stop(0) + end('"tool_use"'),
        outcome="BadToolInput",
        status=502,
    ),
    Failure(
        name="tool-input-that-no-cut-explains",
        stream=_TOOL + partial_json(0, '{"path": /a') + stop(0) + end('"max_tokens"'),
        outcome="BadToolInput",
        status=502,
    ),
    Failure(
        name="tool-input-cut-before-the-last-block",
        stream=_TOOL
        + partial_json(0, '{"path": "/a')
        + stop(0)
        + whole(1, '{"type":"text","text":"x"}')
        + end('"max_tokens"'),
        outcome="BadToolInput",
        status=502,
    ),
    Failure(
        name="event-that-is-no-json",
        stream=_BEGUN
        + event("content_block_delta", '{"type":"content_block_delta","index":0,"delta":{"type"')
        + stop(0)
        + end(),
        outcome="Malformed",
        status=502,
    ),
)

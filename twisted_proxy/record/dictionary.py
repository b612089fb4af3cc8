"""
What the parts of bodies have in common, for their compression: a part is small, and alone has little that repeats.

What is stored was compressed with these very bytes. To change one of them is to lose all of it: another dictionary
needs another name, beside this one.
"""

from __future__ import annotations

DICTIONARY_1 = rb"""
    private static final void  public class extends implements throw new Error(`${ try { } catch (error) {
 => {\n    const  = await  function( if (err != nil) { return nil, err\n\t}\n} else {\n func (s *) string int64 error
 !== undefined && === null || .length; i++) .map(( .push( console.log('  describe(' expect().toBe( export default async
 pub fn  -> Result<  let mut  &self, impl  match  Some( Ok( #[derive(Debug, Clone)] use std:: #include <std.h> struct
\n\nclass (object):\n    \"\"\"\n    \"\"\"\n\n    def __init__(self, name: str = None) -> None:\n        self._
        if not isinstance( is None:\n            raise ValueError(f\"\n        return self.\n\n    @property\n    def
        for  in range(len( while True:\n            try:\n            except Exception as e:\n            else:\n
            with open( as f:\n                continue\n                break\n                pass\nfrom typing import
 Traceback (most recent call last):\n  File \"/usr/lib/python3/site-packages/\", line 1, in <module>\n
 error: No such file or directory\nExit code 1\n\ndrwxr-xr-x 1 root root 4096 Jan  1 00:00 .\n total -rw-r--r--
 test_.py::test_ PASSED [100%]\nFAILED  passed,  failed in 0.1s\ndiff --git a/src b/src\nindex 1234567..\n--- a/\n+++ b/
 https://github.com/ http://localhost:8080/ README.md package.json node_modules/ \"version\": \"1.0.0\",\n  \"scripts\":
 The file has been updated successfully. Here's the result of running `cat -n` on a snippet:\n     1\t     2\t     3\t
 Let me  I'll  I need to  Now let me check the  look at the  This is because  should be used to  you want to  instead of
 In order to make sure that the  there is a  it would be  which can be  for example,  does not  has been  If the user
 from the  with the  that the  on the  by the  for the  and the  in the  to the  of the  is not  will be  can be  are
event: message_start\ndata: {"type":"message_start","message":{"id":"msg_01
{"id":"msg_01","type":"message","role":"assistant","model":"claude-sonnet-4-5-20250929","content":[
"stop_reason":"end_turn","stop_sequence":null,"usage":{"input_tokens":1,"cache_creation_input_tokens":0,
"cache_read_input_tokens":0,"cache_creation":{"ephemeral_5m_input_tokens":0,"ephemeral_1h_input_tokens":0},
"output_tokens":1,"service_tier":"standard"}}
event: content_block_start
data: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}
event: ping
data: {"type": "ping"}
event: content_block_stop
data: {"type":"content_block_stop","index":0}
event: message_delta
data: {"type":"message_delta","delta":{"stop_reason":"tool_use","stop_sequence":null},"usage":{"output_tokens":
event: message_stop
data: {"type":"message_stop"}
event: content_block_delta
data: {"type":"content_block_delta","index":1,"delta":{"type":"input_json_delta","partial_json":""}}
data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"
{"type":"error","error":{"type":"invalid_request_error","message":""},"request_id":"req_011C"}
data: {"id":"chatcmpl-","object":"chat.completion.chunk","created":17,"model":"gpt-","choices":[{"index":0,
"delta":{"role":"assistant","content":""},"finish_reason":null}]}
"tool_calls":[{"id":"call_","type":"function","function":{"name":"","arguments":"{\"
{"role":"tool","tool_call_id":"call_","content":"{"type":"function","function":{"name":"
","description":"","input_schema":{"$schema":"https://json-schema.org/draft/2020-12/schema","type":"object",
"properties":{"command":{"type":"string","description":"The ","default":false},"enum":["
"type":"array","items":{"type":"object"},"minimum":0,"type":"number","type":"boolean","additionalProperties":false}
},"required":["file_path"]}},{"name":"mcp__
{"model":"claude-opus-4-5","messages":[],"system":[{"type":"text","text":"x-anthropic-billing-header: cc_version=2.1.
; cc_entrypoint=cli; cch=00000;"},{"type":"text","text":"You are Claude Code, Anthropic's official CLI for Claude."
],"tools":[],"metadata":{"user_id":"{\"device_id\":\"\",\"account_uuid\":\"\",\"session_id\":\""},"max_tokens":32000,
"temperature":1,"thinking":{"type":"adaptive"},"context_management":{"edits":[{"type":"clear_thinking_20251015",
"keep":"all"}]},"output_config":{"effort":"high"},"diagnostics":{"previous_message_id":"msg_01"},"stream":true}
,"cache_control":{"type":"ephemeral","ttl":"1h"}}]},
"<system-reminder>\nThe following  important-instruction-reminders\n</system-reminder>\n
{"type":"image","source":{"type":"base64","media_type":"image/png","data":"iVBORw0KGgoAAAANSUhEUgAA
[{"type":"thinking","thinking":"","signature":"Eo
","name":"Grep","input":{"pattern":"","path":"","output_mode":"content","-n":true}}]
","name":"Edit","input":{"replace_all":false,"file_path":"","old_string":"","new_string":"
","name":"TodoWrite","input":{"todos":[{"content":"","status":"pending","activeForm":"
","name":"Read","input":{"file_path":"/home/","offset":1,"limit":100}}]
"},{"type":"tool_use","id":"toolu_01","name":"Bash","input":{"command":"cd / && git ","description":"
,{"role":"system","content":"
,{"role":"assistant","content":[{"type":"text","text":"
,{"role":"user","content":[{"tool_use_id":"toolu_01","type":"tool_result","content":"","is_error":false}]}"""

"""
Anthropic's Messages API ⇄ OpenAI's chat completions: requests, answers, streams, errors, lists of models.

========================  ==================================================================
an Anthropic client       :mod:`to_openai` (its request), :mod:`from_openai` (the answer back)
an OpenAI client          :mod:`to_anthropic` (its request), :mod:`from_anthropic` (the answer back)
both                      :mod:`failures` (error bodies), :mod:`listing` (``GET /v1/models``)
a model that cannot count :mod:`estimate` (``count_tokens``)
========================  ==================================================================

One rule for all of it: what would change what the answer is (its shape, its number, where it ends, what it may
be made of) is translated or refused in words, as :class:`refusal.Untranslatable`. What only tunes, caches, bills
or observes is a hint, and a hint without a counterpart is left out. ``docs/translation.md`` lists both.

JSON values pass as the text that they came in, as far as they have a counterpart: schemas and tool input byte for
byte, strings with their escapes. So integers keep their digits, ``1.0`` its point, ``1e400`` its value.
"""

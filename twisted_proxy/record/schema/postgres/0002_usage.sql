-- Usage over time from an index.

-- All that usage adds up, in the order of pages: it takes one pass over this, not over the rows. None of these is a text
-- whose length clients choose, but for those that are cut (256 characters at most).
CREATE INDEX exchanges_usage ON exchanges (number) INCLUDE (
    received_at, verdict, status, model, routed_model, session, agent, agent_type, request_class, cost_nanousd,
    cost_is_partial, stream, demoted, first_event_us, last_byte_us, input_tokens, output_tokens, cache_read_tokens,
    cache_write_5m_tokens, cache_write_1h_tokens
);

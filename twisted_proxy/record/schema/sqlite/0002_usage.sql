-- Usage over time from an index, as filters are.

-- Every filter, and all that usage adds up, in one place, in the order of pages: whatever is asked, it takes one pass
-- over this, not over the rows.
DROP INDEX exchanges_filters;
CREATE INDEX exchanges_filters ON exchanges (
    number, received_at, verdict, status, model, routed_model, session, agent, conversation, request_class, path,
    cost_nanousd, cost_is_partial, agent_type, stream, demoted, first_event_us, last_byte_us, input_tokens,
    output_tokens, cache_read_tokens, cache_write_5m_tokens, cache_write_1h_tokens
);

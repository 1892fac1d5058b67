"""Lua scripts that the broker runs in Redis, and the names of its keys. Owns the layout of the streams.

There are three kinds of streams, each capped:

* ``{spikewatch}:tail``: all messages, for subscribers of all runs. Redis assigns the ids of this stream.
* ``{spikewatch}:tail:RUN``: the messages of one run, with the same ids. It expires after a period of silence.
* ``{spikewatch}:notices``: the broadcast stream with the messages that every server reads
  (`live_message.BROADCAST_TYPES`) and the gaps, with the same ids.

An entry has the fields ``t`` (type), ``r`` (run), ``p`` (project) and ``b`` (body, JSON). A *gap*, of type ``gap``,
marks that messages may be missing before it. Its body is the new *generation*, a name that is stored in
``{spikewatch}:generation`` and is part of every cursor, so that every server recognises a cursor from before a gap.

The braces put all keys into one slot, as scripts in a Redis Cluster require.
"""

from __future__ import annotations

from typing import Final

PREFIX: Final = "{spikewatch}:"
GENERATION: Final = PREFIX + "generation"
TAIL: Final = PREFIX + "tail"
BROADCAST: Final = PREFIX + "notices"
RUN_STREAMS: Final = TAIL + ":"


def run_stream(run_id: str) -> str:
    """Return the key of the stream of a run."""
    return RUN_STREAMS + run_id


PUBLISH: Final = """
-- KEYS: tail, broadcast stream, then for each message the stream of its run.
-- ARGV: entries kept in tail and broadcast stream, entries kept of a run, expiry of a run (ms), then for each message
--       type, run, project, body, "1" to add it to the run's stream, "1" to add it to the broadcast stream.
for i = 1, #KEYS - 2 do
  local at = 4 + 6 * (i - 1)
  local t, r, p, b = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  local id = redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', 't', t, 'r', r, 'p', p, 'b', b)
  if ARGV[at + 4] == '1' then
    redis.call('XADD', KEYS[2 + i], 'MAXLEN', '~', ARGV[2], id, 't', t, 'r', r, 'p', p, 'b', b)
    redis.call('PEXPIRE', KEYS[2 + i], ARGV[3])
  end
  if ARGV[at + 5] == '1' then
    redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[1], id, 't', t, 'r', r, 'p', p, 'b', b)
  end
end
"""

RENEW: Final = """
-- Begins a new generation, unless another server has done so. KEYS: generation, tail, broadcast stream.
-- ARGV: the generation that the caller saw ("" for none), the new one, entries kept in tail and broadcast stream.
local now = redis.call('GET', KEYS[1]) or ''
if now ~= ARGV[1] then return now end
redis.call('SET', KEYS[1], ARGV[2])
local id = redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[3], '*', 't', 'gap', 'r', '', 'p', '', 'b', ARGV[2])
redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[3], id, 't', 'gap', 'r', '', 'p', '', 'b', ARGV[2])
return ARGV[2]
"""

RESUME: Final = """
-- KEYS: generation, tail, then the streams of the subscriber. ARGV: last id that the subscriber received ("" for none),
-- maximum number of entries. Returns generation, last id, and for each stream the entries after the id, or false where
-- some are no longer there. A missing stream has no entries: the caller has to check whether the id is so old that the
-- stream may have expired since.
local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)
local answer = {redis.call('GET', KEYS[1]) or '', last[1] and last[1][1] or '0-0'}
if ARGV[1] == '' then return answer end
local function before(a, b)
  local am, as = a:match('(%d+)-(%d+)')
  local bm, bs = b:match('(%d+)-(%d+)')
  am, as, bm, bs = tonumber(am), tonumber(as), tonumber(bm), tonumber(bs)
  return am < bm or (am == bm and as < bs)
end
for i = 3, #KEYS do
  local found = {}
  local info = redis.pcall('XINFO', 'STREAM', KEYS[i])
  if not info.err then
    local about = {}
    for n = 1, #info, 2 do about[info[n]] = info[n + 1] end
    local first = about['first-entry']
    local cut = about['entries-added'] ~= about['length']
    if cut and first and before(ARGV[1], first[1]) then
      found = false
    else
      found = redis.call('XRANGE', KEYS[i], '(' .. ARGV[1], '+', 'COUNT', ARGV[2] + 1)
      if #found > tonumber(ARGV[2]) then found = false end
    end
  end
  answer[#answer + 1] = found
end
return answer
"""

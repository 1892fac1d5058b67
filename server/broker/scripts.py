"""What the broker asks of Redis as one: Lua scripts, and the names of the keys. Owns the layout of the streams.

Three kinds of streams, each capped:

* ``{spikewatch}:tail``: everything, for those who watch all runs. It gives out the ids.
* ``{spikewatch}:tail:RUN``: one run, for those who watch it. The same ids; forgotten after a while of silence.
* ``{spikewatch}:notices``: what every server reads (`message.BROADCAST_TYPES`), and the gaps. The same ids again.

An entry has the fields ``t`` (type), ``r`` (run), ``p`` (project) and ``b`` (body, JSON). A *gap*, of type ``gap``,
says that messages may be missing before it; its body is the new *generation*, a name that ``{spikewatch}:generation``
holds and that every cursor carries. So a cursor of before a gap is recognised, whoever hands it out.

The braces put all keys into one slot, as a script needs it in a Redis Cluster.
"""

from __future__ import annotations

from typing import Final

PREFIX: Final = "{spikewatch}:"
GENERATION: Final = PREFIX + "generation"
TAIL: Final = PREFIX + "tail"
BROADCAST: Final = PREFIX + "notices"
RUN_STREAMS: Final = TAIL + ":"


def run_stream(run_id: str) -> str:
    return RUN_STREAMS + run_id


PUBLISH: Final = """
-- KEYS: tail, notices, then for each message the stream of its run.
-- ARGV: entries of tail and notices, entries of a run, expiry of a run (ms), then for each message
--       type, run, project, body, whether it goes to the run ("1"), whether it goes to the notices ("1").
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
-- Begin a new generation, unless somebody has since the caller looked. KEYS: generation, tail, notices.
-- ARGV: the generation that the caller saw ("" for none), the new one, entries of tail and notices.
local now = redis.call('GET', KEYS[1]) or ''
if now ~= ARGV[1] then return now end
redis.call('SET', KEYS[1], ARGV[2])
local id = redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[3], '*', 't', 'gap', 'r', '', 'p', '', 'b', ARGV[2])
redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[3], id, 't', 'gap', 'r', '', 'p', '', 'b', ARGV[2])
return ARGV[2]
"""

RESUME: Final = """
-- KEYS: generation, tail, then the streams of the subscriber. ARGV: id that the subscriber saw last ("" for none),
-- most entries. Returns generation, last id, and the entries of each stream after the id, or false where it no longer
-- has them all. A stream that is not there has none: who saw an id so old that the stream may have been forgotten since
-- is not told here.
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

-- Writes the beat of a shard unless writes were lost. KEYS: beat, mark of a whole shard. ARGV: last acknowledged beat ('' for none), new beat,
-- time to live in seconds, '1' to write it after a loss too. Returns the beat that was there ('' for none) and 1 if it
-- was written, else 0. A beat never goes back: of processes that start together, the slower one may have the older time.
local beat = redis.call('GET', KEYS[1])
local lost = ARGV[1] ~= '' and (not beat or tonumber(beat) < tonumber(ARGV[1]))
if lost and ARGV[4] ~= '1' then
  return {beat or '', 0}
end
if not beat or tonumber(beat) < tonumber(ARGV[2]) then
  redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
  redis.call('EXPIRE', KEYS[2], ARGV[3])
end
return {beat or '', 1}

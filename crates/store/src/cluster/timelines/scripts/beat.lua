-- Writes the beat of a shard unless writes were lost. KEYS: beat. ARGV: last acknowledged beat ('' for none), new beat,
-- time to live in seconds, '1' to write it in any case. Returns the beat that was there ('' for none) and 1 if it was
-- written, else 0.
local beat = redis.call('GET', KEYS[1])
local lost = ARGV[1] ~= '' and (not beat or tonumber(beat) < tonumber(ARGV[1]))
if lost and ARGV[4] ~= '1' then
  return {beat or '', 0}
end
if ARGV[4] == '1' or not beat or tonumber(beat) < tonumber(ARGV[2]) then
  redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
end
return {beat or '', 1}

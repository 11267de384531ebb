-- Writes timelines of one bucket if nothing else wrote to its body since they were read, and removes the merged blocks.
-- KEYS: body, tail. ARGV: generation that was read ('' for none), new generation, time to live in seconds,
-- number of merged blocks, SHA-1 of them, then pairs of field and value. Returns 1, or 0 if the body or the blocks changed.
if (redis.call('HGET', KEYS[1], 'g') or '') ~= ARGV[1] then
  return 0
end
local blocks = tonumber(ARGV[4])
if blocks > 0 then
  -- After a loss of writes there can be other blocks in place of those that were merged.
  if redis.sha1hex(table.concat(redis.call('LRANGE', KEYS[2], 0, blocks - 1))) ~= ARGV[5] then
    return 0
  end
  redis.call('LTRIM', KEYS[2], blocks, -1)
end
redis.call('HSETNX', KEYS[1], 'e', ARGV[2])
redis.call('HSET', KEYS[1], 'g', ARGV[2], unpack(ARGV, 6))
redis.call('EXPIRE', KEYS[1], ARGV[3])
redis.call('EXPIRE', KEYS[2], ARGV[3])
return 1

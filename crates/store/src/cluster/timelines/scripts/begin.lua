-- Begins the rebuild of a timeline: makes sure that the body exists, so that a flush in between is noticed.
-- KEYS: body. ARGV: new generation, time to live in seconds, '1' to invalidate the timeline, its field. Returns the epoch
-- of the body, which changes only if the body is lost.
if redis.call('HSETNX', KEYS[1], 'e', ARGV[1]) == 1 then
  redis.call('HSET', KEYS[1], 'g', ARGV[1])
end
if ARGV[3] == '1' then
  -- Version 1 without posts if there is nothing yet.
  local value = redis.call('HGET', KEYS[1], ARGV[4]) or '\1\0\0'
  -- The second byte is the state: 0 is partial. A new generation refuses writers that have read the old state.
  redis.call('HSET', KEYS[1], 'g', ARGV[1], ARGV[4], string.sub(value, 1, 1) .. '\0' .. string.sub(value, 3))
end
redis.call('EXPIRE', KEYS[1], ARGV[2])
return redis.call('HGET', KEYS[1], 'e')

package redisstore

import (
	"context"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/writ-mesh/writ/ratelimit/limit"
)

// Tell has Redis do what was decided without it: uses that do not take, each with an id
// that is nobody else's. A use that was told before by its id is not done again, whether
// Redis was heard to have done it or not. Uses of one slot are done together or not at
// all. With an error Redis may have done some of them, or may do so later: they are to be
// told again with the same ids.
func (s *Store) Tell(ctx context.Context, now time.Time, uses []limit.Use, ids []string) error {
	groups := s.together(now, uses)
	jobs, failed := make([]*job, len(groups)), nodesError{}
	for k, group := range groups {
		j := s.job(now, uses[group[0]:group[0]])
		for _, i := range group {
			j.uses, j.ids = append(j.uses, uses[i]), append(j.ids, ids[i])
		}
		j.outcomes = append(j.outcomes, make([]limit.Outcome, len(group))...)
		var err error
		if jobs[k], err = s.enqueue(j); err != nil {
			failed.add(s.Node(now, &uses[group[0]]), err)
		}
	}
	for k, group := range groups {
		if jobs[k] == nil {
			continue
		}
		if err := s.finish(ctx, jobs[k], s.patience(jobs[k]), nil); err != nil {
			failed.add(s.Node(now, &uses[group[0]]), err)
		}
	}
	if failed.error != nil {
		return &failed
	}
	s.forget(now, groups, uses, ids)
	return nil
}

// together gives the places of uses that one script can do.
func (s *Store) together(now time.Time, uses []limit.Use) [][]int {
	if len(s.lanes) > 1 {
		return bySlot(now, uses)
	}
	all := make([]int, len(uses))
	for i := range all {
		all[i] = i
	}
	return [][]int{all}
}

// straggles is for how long what was sent before may still reach Redis though its
// connection was given up: Linux sends it again for about 100 s.
const straggles = 2 * time.Minute

// forget lets go of ids by which nobody will tell anything again, in the background, once
// nothing that was told by them can still be on its way. Others go by themselves once what
// was done with them cannot count any more.
func (s *Store) forget(now time.Time, groups [][]int, uses []limit.Use, ids []string) {
	for _, group := range groups {
		j := s.job(now, uses[group[0]:group[0]+1])
		for _, i := range group {
			if remembered(&uses[i]) > straggles {
				j.forget = append(j.forget, idKey(uses[i].Limit.CounterKey(uses[i].Key, now), ids[i]))
			}
		}
		if len(j.forget) > 0 {
			_, _ = s.enqueue(j) // else they go by themselves
		}
	}
}

// idKey is where Redis knows an id of what was done to a counter: in the counter's slot.
func idKey(counter, id string) string {
	tag, ok := hashTag(counter)
	if !ok {
		tag = counter
	}
	if tag == "" || strings.Contains(tag, "}") {
		tag = tagOf(slot(counter))
	}
	return "writ:told:{" + tag + "}:" + id
}

// tagOf finds a tag of a slot: each of four checksums is that of one text of two bytes,
// and at most two of those have a brace.
func tagOf(of uint16) string {
	for crc := of; ; crc += slots {
		text := crc
		for range 16 { // what slot does, backwards
			if text&1 != 0 {
				text = (text^0x1021)>>1 | 0x8000
			} else {
				text >>= 1
			}
		}
		if tag := string([]byte{byte(text >> 8), byte(text)}); !strings.Contains(tag, "}") {
			return tag
		}
	}
}

// remembered is for how long Redis knows the id of a use: as long as what it did can
// count.
func remembered(u *limit.Use) time.Duration {
	counts := max(u.Limit.Window(), 2*u.HeldFor()) // what is held may be settled for as long again
	if requests := uint64(u.Limit.Requests()); u.Limit.Algorithm() == limit.GCRA && requests > 0 {
		most := max(requests, uint64(u.Limit.Burst()))
		counts = max(counts, u.Limit.Window()*2*time.Duration((most+requests-1)/requests)) //nolint:gosec // at most ten years; to where a bucket fills
	}
	return counts + time.Second
}

// unrepeated keeps the client of a cluster from sending commands again that may have been
// done: without it one that is answered too late is done four times. Those that follow
// their slot to another master, or that never left, are sent again all the same.
type unrepeated struct{}

// DialHook implements redis.Hook.
func (unrepeated) DialHook(next redis.DialHook) redis.DialHook { return next }

// ProcessHook implements redis.Hook.
func (unrepeated) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }

// ProcessPipelineHook implements redis.Hook. Each command speaks for itself: the client
// divides them among the masters, and those of a slot that has moved go on alone.
func (unrepeated) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		wrapped := make([]once, len(cmds))
		for i, cmd := range cmds {
			wrapped[i].Cmder = cmd
			cmds[i] = &wrapped[i]
		}
		return next(ctx, cmds)
	}
}

// once is a command that is not sent again.
type once struct{ redis.Cmder }

// NoRetry implements redis.Cmder.
func (once) NoRetry() bool { return true }

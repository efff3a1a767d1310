package redisstore

import (
	"context"
	"crypto/rand"
	"errors"
	"slices"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/writ-mesh/writ/ratelimit/limit"
)

const (
	// maxNodes is how many masters of a cluster have workers of their own; of more
	// some share theirs.
	maxNodes = 16
	// probeKey is a counter of no caller.
	probeKey = "writ:probe"
)

// nodes is how many servers are told apart.
func nodes(o *Options) int {
	if len(o.Cluster) > 0 {
		return maxNodes
	}
	return 1
}

// owners say which lane the slots of a cluster belong to: that of their master.
type owners struct {
	lane  [slots]uint8
	probe [maxNodes]string // a counter in a slot of each
}

// Nodes is how many servers are told apart: the masters of a cluster.
func (s *Store) Nodes() int { return len(s.lanes) }

// Node is which of them a use is decided by, as far as it is known now.
func (s *Store) Node(now time.Time, u *limit.Use) int {
	known := s.owners.Load()
	if known == nil {
		return 0
	}
	return int(known.lane[slot(u.Limit.CounterKey(u.Key, now))])
}

// ProbeKey is a key that is with a server, empty if none is.
func (s *Store) ProbeKey(node int) string {
	switch known := s.owners.Load(); {
	case known != nil:
		return known.probe[node]
	case node == 0:
		return probeKey
	default:
		return ""
	}
}

// follow keeps in mind who is the master of which slots, until ctx ends.
func (s *Store) follow(ctx context.Context, client *redis.ClusterClient) error {
	lanes := make(map[string]int) // by the master's name
	look := func() {
		if ranges, err := client.ClusterSlots(ctx).Result(); err == nil { //nolint:staticcheck // CLUSTER SHARDS needs Redis 7, and the client asks this too
			s.owners.Store(newOwners(lanes, ranges))
		} // else the client goes on with what it knows, and so do we
	}
	look()
	tick := time.NewTicker(reloadEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.missed:
			// The client itself looks no sooner than 200 ms after it did; to go through all
			// masters is what it looks before, each time.
			_ = client.ForEachMaster(ctx, func(context.Context, *redis.Client) error { return nil })
			look()
			select { // a moment for those who know nothing new
			case <-ctx.Done():
			case <-time.After(searchEvery):
			}
		case <-tick.C:
			look()
		}
	}
}

// miss has the cluster's masters looked for now, if an error says that one may be another.
func (s *Store) miss(err error) {
	var said redis.Error
	if s.missed == nil || err == nil || errors.As(err, &said) && !redis.HasErrorPrefix(err, "CLUSTERDOWN") && !redis.HasErrorPrefix(err, "READONLY") {
		return
	}
	select {
	case s.missed <- struct{}{}:
	default:
	}
}

// newOwners makes owners of what a cluster says. A master keeps its lane in lanes as
// long as it has slots; a new one gets one that is free.
func newOwners(lanes map[string]int, ranges []redis.ClusterSlot) *owners {
	masters := make(map[string]bool)
	for _, r := range ranges {
		if name := master(r); name != "" {
			masters[name] = true
		}
	}
	used := make(map[int]bool)
	for name, lane := range lanes {
		if !masters[name] {
			delete(lanes, name)
			continue
		}
		used[lane] = true
	}
	o := &owners{}
	for _, r := range ranges {
		name := master(r)
		if name == "" {
			continue
		}
		lane, known := lanes[name]
		if !known {
			for lane = 0; used[lane] && lane < maxNodes-1; {
				lane++
			}
			lanes[name], used[lane] = lane, true
		}
		for i := max(r.Start, 0); i <= min(r.End, slots-1); i++ {
			o.lane[i] = uint8(lane) //nolint:gosec // below maxNodes
		}
	}
	for n, missing := 0, len(used); missing > 0 && n < 8*slots; n++ {
		tag := strconv.Itoa(n)
		if key := &o.probe[o.lane[slot(tag)]]; *key == "" {
			*key = probeKey + ":{" + tag + "}"
			missing--
		}
	}
	return o
}

// master names the master of some slots.
func master(r redis.ClusterSlot) string {
	if len(r.Nodes) == 0 {
		return ""
	}
	if r.Nodes[0].ID != "" {
		return r.Nodes[0].ID
	}
	return r.Nodes[0].Addr
}

// load makes the script known to those who do not know it.
func (s *Store) load(ctx context.Context, jobs []*job) {
	cluster, ok := s.client.(*redis.ClusterClient)
	if !ok {
		s.client.ScriptLoad(ctx, source)
		return
	}
	var told []*redis.Client
	for _, j := range jobs {
		u := &j.uses[0]
		node, err := cluster.MasterForKey(ctx, u.Limit.CounterKey(u.Key, j.now))
		if err != nil || slices.Contains(told, node) {
			continue
		}
		node.ScriptLoad(ctx, source)
		told = append(told, node)
	}
}

// bySlot gives the places of the uses of each slot.
func bySlot(now time.Time, uses []limit.Use) (groups [][]int) {
	at := make(map[uint16]int, 1)
	for i := range uses {
		slot := slot(uses[i].Limit.CounterKey(uses[i].Key, now))
		k, known := at[slot]
		if !known {
			k = len(groups)
			at[slot] = k
			groups = append(groups, nil)
		}
		groups[k] = append(groups[k], i)
	}
	return groups
}

// nodesError is an error of some of the servers that a decision was made by.
type nodesError struct {
	error

	nodes []int
}

// Nodes are the servers that failed.
func (e *nodesError) Nodes() []int { return e.nodes }

func (e *nodesError) Unwrap() error { return e.error }

func (e *nodesError) add(node int, err error) { e.error, e.nodes = err, append(e.nodes, node) }

// across decides uses of several slots, a script for each, all of them at once.
func (s *Store) across(ctx context.Context, now time.Time, groups [][]int, uses []limit.Use, outcomes []limit.Outcome) error {
	uses = slices.Clone(uses)
	for i := range uses { // what may have to be given back needs a name
		uses[i].Hold = holdName(&uses[i])
	}
	some := make([]limit.Use, 0, len(uses))
	jobs, failed := make([]*job, len(groups)), nodesError{}
	fail := func(k int, err error) { failed.add(s.Node(now, &uses[groups[k][0]]), err) }
	for k, group := range groups {
		some = some[:0]
		for _, i := range group {
			some = append(some, uses[i])
		}
		var err error
		if jobs[k], err = s.start(now, some); err != nil {
			fail(k, err)
		}
	}
	decided := make([]limit.Outcome, len(uses))
	var took []limit.Use // what gives it back
	for k, group := range groups {
		if jobs[k] == nil {
			continue
		}
		// All have been on their way for as long: servers that hang are waited for together.
		if err := s.finish(ctx, jobs[k], s.patience(jobs[k]), decided[:len(group)]); err != nil {
			fail(k, err)
			continue
		}
		for n, i := range group {
			outcomes[i] = decided[n]
			if back, ok := inverse(uses[i], outcomes[i]); ok {
				took = append(took, back)
			}
		}
	}
	if failed.error != nil { // who decides it without us tells us of all of it
		s.giveBack(now, took)
		return &failed
	}
	s.compensate(now, uses, outcomes)
	return nil
}

// compensate gives back, in the background, what was taken in some slots while others
// refuse. Until it has arrived others may be refused for it; nobody passes for it.
func (s *Store) compensate(now time.Time, uses []limit.Use, outcomes []limit.Outcome) {
	if !refuses(uses, outcomes) {
		return
	}
	var took []limit.Use
	for i, u := range uses {
		out := &outcomes[i]
		back, ok := inverse(u, *out)
		if !ok || u.Limit.CountsRefused() {
			continue
		}
		took = append(took, back)
		out.Remaining += uint32(out.Taken) //nolint:gosec // at most what was there before
		out.Taken = 0
	}
	s.giveBack(now, took)
}

// inverse gives back what a use took, if it took something.
func inverse(u limit.Use, out limit.Outcome) (back limit.Use, ok bool) {
	if u.Op != limit.Take || out.Taken == 0 {
		return u, false
	}
	u.Op, u.Hits, u.Want, u.At = limit.Refund, out.Taken, 0, out.At
	if u.HeldFor() > 0 {
		u.Op, u.Hits = limit.Settle, 0
	}
	return u, true
}

// giveBack gives back in the background.
func (s *Store) giveBack(now time.Time, took []limit.Use) {
	for _, group := range bySlot(now, took) {
		some := make([]limit.Use, 0, len(group))
		for _, i := range group {
			some = append(some, took[i])
		}
		_, _ = s.start(now, some) // else it counts for its window: nobody passes for that
	}
}

// refuses says whether something refuses that is not counted all the same.
func refuses(uses []limit.Use, outcomes []limit.Outcome) bool {
	for i := range uses {
		if u := &uses[i]; outcomes[i].Over && !u.Observe && !u.Limit.CountsRefused() {
			return true
		}
	}
	return false
}

// holdName gives a use that is held without a name one that is nobody else's.
func holdName(u *limit.Use) string {
	if u.Hold == "" && u.HeldFor() > 0 && u.Op != limit.Settle {
		return rand.Text()
	}
	return u.Hold
}

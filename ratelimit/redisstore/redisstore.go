// Package redisstore keeps the counters of rate limits in Redis, so that any
// number of replicas count as one. It is the only package that knows go-redis.
//
// A decision over several limits is one call of one script (decide.lua), hence
// one round trip and atomic; of fixed limits alone it is plain commands, for nothing
// depends on another there. A few workers carry the decisions to Redis in
// pipelines of whatever waits; the number of goroutines and of connections does
// not grow with the load, and nobody waits longer than Options.Timeout for a Redis
// that does not answer.
//
// Whose clock: limits are counted by the clock of Redis, so that replicas whose
// clocks differ still share one window. Only fixed limits are counted by the
// clock of the caller, because the window's start is part of the key's name, as
// envoyproxy/ratelimit has it; running beside it both count in the same keys.
//
// Redis is a single one, one behind Sentinel, or a cluster. The callers' keys carry a
// hash tag per policy, so that the limits of one policy are in one slot of a cluster
// and decided by one script there as well. Limits of several policies on one request
// are decided by a script per slot, all on the way at once; if one of them refuses,
// what the others took is given back in the background: never does more pass, and for
// the moment in between others may be refused for it. What is charged, settled and
// given back in other slots than that of the refusal is done all the same. Each master
// has workers of its own, so that one that is away keeps nobody waiting but those who
// ask it; the errors of Decide say which it was.
package redisstore

import (
	"context"
	"crypto/tls"
	_ "embed" // decide.lua
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/writ-mesh/writ/ratelimit/limit"
)

//go:embed decide.lua
var source string

// Errors of Decide beside those of Redis itself. In each case Redis may or may
// not have counted the uses.
var (
	// ErrTimeout: no answer within Options.Timeout.
	ErrTimeout = errors.New("redis did not answer in time")
	// ErrBusy: more decisions wait than the queue holds.
	ErrBusy = errors.New("too many decisions wait for redis")
)

const (
	// DefaultTimeout leaves a millisecond of the five in which a decision must be
	// made when Redis is away.
	DefaultTimeout = 4 * time.Millisecond
	// defaultWorkers keep one pipeline on the way while the next gathers.
	defaultWorkers = 2
	// queueLength bounds the decisions that wait; at 10 us each in Redis this is
	// more than can be answered within the timeout.
	queueLength = 1024
	maxBatch    = 128
	// maxWait times Timeout is the longest that a decision waits in a process that
	// has more to do than it can.
	maxWait = 5
	// ioTimeout is how long a worker waits for Redis at least. Callers do not: it
	// only has to end, and to be short enough that a worker is back soon.
	ioTimeout = 250 * time.Millisecond
)

// Options say where Redis is and how long to wait for it.
type Options struct {
	// Address is host:port or unix:///path of a single Redis. Either this, or
	// Sentinel, or Cluster is set.
	Address string
	// Sentinel is for a master that can change.
	Sentinel Sentinel
	// Cluster are host:port of some nodes of a cluster.
	Cluster  []string
	Username string
	Password string
	DB       int
	// TLS is nil for plain text.
	TLS *tls.Config
	// Timeout is how long Redis may take for one decision; 0 is DefaultTimeout.
	Timeout time.Duration
	// Workers is the number of pipelines; 0 is 2.
	Workers int
	// CallersClock counts all limits by the time that Decide is given. It is
	// for tests: replicas would disagree about when a window ends.
	CallersClock bool
}

// Store is a set of counters in Redis. It is safe for concurrent use.
type Store struct {
	client  redis.UniversalClient
	sha     string // of source, by which Redis knows it
	options Options
	lanes   []*lane
	owners  atomic.Pointer[owners] // of a cluster's slots
	missed  chan struct{}          // a master of a cluster did not answer; nil without a cluster
	jobs    sync.Pool
	epoch   time.Time
}

// lane carries the decisions of one server.
type lane struct {
	queue    chan *job
	answered atomic.Int64 // when it last answered, by Store.elapsed
}

// New returns a store. It does not connect; Decide needs Run to be running.
func New(o Options) (*Store, error) {
	if o.Timeout <= 0 {
		o.Timeout = DefaultTimeout
	}
	if o.Workers <= 0 {
		o.Workers = defaultWorkers
	}
	// go-redis logs each failed dial to standard error by itself; what matters
	// comes back as an error and is counted and logged by the caller.
	redis.SetLogger(silent{})
	client, err := client(o)
	if err != nil {
		return nil, err
	}
	if len(o.Cluster) > 0 {
		client.AddHook(unrepeated{})
	}
	s := &Store{client: client, sha: redis.NewScript(source).Hash(), options: o, epoch: time.Now()}
	if len(o.Cluster) > 0 {
		s.missed = make(chan struct{}, 1)
	}
	for range nodes(&o) {
		s.lanes = append(s.lanes, &lane{queue: make(chan *job, queueLength)})
	}
	s.jobs.New = func() any { return &job{done: make(chan error, 1)} }
	return s, nil
}

// Run carries decisions to Redis until ctx ends; then it closes the connections.
func (s *Store) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, l := range s.lanes {
		for range s.options.Workers {
			g.Go(func() error { return s.work(ctx, l) })
		}
	}
	if cluster, ok := s.client.(*redis.ClusterClient); ok {
		g.Go(func() error { return s.follow(ctx, cluster) })
	}
	err := g.Wait()
	return errors.Join(err, s.client.Close())
}

// Decide makes one decision over all uses and puts what became of each into
// outcomes, which is as long as uses. Sliding limits are taken from only if no
// enforced one of them is over. With an error outcomes are not set.
func (s *Store) Decide(ctx context.Context, now time.Time, uses []limit.Use, outcomes []limit.Outcome) error {
	if len(s.lanes) > 1 && len(uses) > 1 {
		if groups := bySlot(now, uses); len(groups) > 1 {
			return s.across(ctx, now, groups, uses, outcomes)
		}
	}
	j, err := s.start(now, uses)
	if err != nil {
		return err
	}
	err = s.finish(ctx, j, s.options.Timeout, outcomes)
	if errors.Is(err, ErrTimeout) {
		return &unanswered{job: j}
	}
	return err
}

// start puts a decision on its way to the server of its first use.
func (s *Store) start(now time.Time, uses []limit.Use) (*job, error) {
	return s.enqueue(s.job(now, uses))
}

// job makes one for a decision.
func (s *Store) job(now time.Time, uses []limit.Use) *job {
	j := s.jobs.Get().(*job) //nolint:forcetypeassert // see New
	j.now = now
	j.sent.Store(0)
	j.ids, j.forget = nil, nil
	j.uses = append(j.uses[:0], uses...) // the caller may go before the worker does
	j.outcomes = append(j.outcomes[:0], make([]limit.Outcome, len(uses))...)
	return j
}

func (s *Store) enqueue(j *job) (*job, error) {
	j.lane, j.begin = s.lanes[0], s.elapsed()
	if len(s.lanes) > 1 && len(j.uses) > 0 {
		j.lane = s.lanes[s.Node(j.now, &j.uses[0])]
	}
	select {
	case j.lane.queue <- j:
		return j, nil
	default:
		return nil, ErrBusy
	}
}

// finish waits for a decision, for so long and then for what its patience still is. The
// job is another's then.
func (s *Store) finish(ctx context.Context, j *job, wait time.Duration, outcomes []limit.Outcome) error {
	if j.timer == nil {
		j.timer = time.NewTimer(wait)
	} else {
		j.timer.Reset(wait)
	}
	for {
		select {
		case err := <-j.done:
			j.timer.Stop()
			copy(outcomes, j.outcomes)
			s.jobs.Put(j)
			return err
		case <-j.timer.C:
			left := s.patience(j)
			if left <= 0 && len(j.done) == 0 {
				j.abandoned.Store(true)
				return ErrTimeout
			}
			j.timer.Reset(left)
		case <-ctx.Done():
			j.timer.Stop()
			j.abandoned.Store(true)
			return ctx.Err()
		}
	}
}

// patience is for how much longer a decision may wait: Timeout from when it was
// sent. While it stands in the queue it waits as long as Redis answers others
// within Timeout, for then this process is busy and Redis is not away.
func (s *Store) patience(j *job) time.Duration {
	now, since := s.elapsed(), j.begin
	if sent := time.Duration(j.sent.Load()); sent > 0 {
		since = sent
	} else if answered := time.Duration(j.lane.answered.Load()); answered > j.begin {
		since = answered
	}
	return min(since+s.options.Timeout-now, j.begin+maxWait*s.options.Timeout-now)
}

// elapsed is a clock for waiting; it is never 0.
func (s *Store) elapsed() time.Duration { return time.Since(s.epoch) + 1 }

// job is one decision on its way: one script, or counts. Who gave it up sets abandoned and leaves
// it to the worker; only a finished one is used again.
type job struct {
	now       time.Time
	uses      []limit.Use
	outcomes  []limit.Outcome
	lane      *lane
	begin     time.Duration // by Store.elapsed
	abandoned atomic.Bool
	done      chan error
	timer     *time.Timer
	sent      atomic.Int64 // when, by Store.elapsed; 0 while it waits for a worker
	script    *redis.Cmd   // on its way, or counts are
	counts    []count
	ids       []string // of uses that are told, see Tell
	forget    []string // keys of ids that may go: instead of a decision
}

func (s *Store) work(ctx context.Context, l *lane) error {
	batch := make([]*job, 0, maxBatch)
	for {
		batch = batch[:0]
		select {
		case <-ctx.Done():
			return ctx.Err()
		case j := <-l.queue:
			batch = append(batch, j)
		}
		for more := true; more && len(batch) < maxBatch; {
			select {
			case j := <-l.queue:
				batch = append(batch, j)
			default:
				more = false
			}
		}
		s.carry(ctx, l, batch)
	}
}

// carry sends a batch; if Redis does not know the script (it restarted empty, or
// another one is the master), once more when it does.
func (s *Store) carry(ctx context.Context, l *lane, batch []*job) {
	rest := batch[:0]
	for _, j := range batch {
		if !j.abandoned.Load() {
			rest = append(rest, j)
		}
	}
	if rest = s.send(ctx, l, rest, false); len(rest) > 0 {
		s.load(ctx, rest) // what it says, the commands say again
		s.send(ctx, l, rest, true)
	}
}

// send returns the jobs that found no script.
func (s *Store) send(ctx context.Context, l *lane, jobs []*job, last bool) (again []*job) {
	if len(jobs) == 0 {
		return nil
	}
	pipe := s.client.Pipeline()
	for _, j := range jobs {
		if len(j.forget) > 0 {
			for _, id := range j.forget {
				pipe.Expire(ctx, id, straggles)
			}
			continue
		}
		if j.countsOnly() {
			j.count(ctx, pipe)
			continue
		}
		keys, args := s.arguments(j)
		j.script = pipe.EvalSha(ctx, s.sha, keys, args...)
	}
	sent := int64(s.elapsed())
	for _, j := range jobs {
		j.sent.Store(sent)
	}
	_, failed := pipe.Exec(ctx)
	if failed == nil {
		l.answered.Store(int64(s.elapsed()))
	}
	s.miss(failed)
	for _, j := range jobs {
		if len(j.forget) > 0 {
			j.done <- nil // nobody waits
			continue
		}
		if j.script == nil {
			j.done <- j.fillCounts(failed)
			continue
		}
		values, err := j.script.Int64Slice()
		if j.script.Err() == nil && j.script.Val() == nil && failed != nil {
			err = failed // it was not sent: Redis did not let us in
		}
		j.script = nil
		if !last && err != nil && redis.HasErrorPrefix(err, "NOSCRIPT") {
			again = append(again, j)
			continue
		}
		if err == nil {
			err = j.fill(values)
		}
		j.done <- err
	}
	return again
}

// arguments are the keys and arguments of decide.lua.
func (s *Store) arguments(j *job) (keys []string, args []any) {
	const head, each = 2, 5
	keys = make([]string, 0, len(j.uses))
	args = make([]any, 0, head+each*len(j.uses))
	var now int64
	callers := j.now.UnixMicro()
	if s.options.CallersClock {
		now = callers
	}
	args = append(args, now, callers)
	var holds, resets, demands, ids []string
	for i := range j.uses {
		u := &j.uses[i]
		keys = append(keys, u.Limit.CounterKey(u.Key, j.now))
		hits, flags := u.Bounded(), opFlags(u)
		part := limit.Part(j.uses, i)
		if part {
			flags += "p"
		}
		if len(j.ids) > 0 {
			flags += "i"
		}
		if u.Op == limit.Refund && !u.At.IsZero() && u.Limit.CounterKey(u.Key, u.At) != keys[i] {
			hits = 0 // it was taken from another counter, which is over
		}
		args = append(args, u.Limit.Algorithm().Code(), u.Limit.Requests(), u.Limit.Window().Microseconds(), hits, flags)
		if u.Limit.Algorithm() == limit.GCRA {
			args = append(args, u.Limit.Burst())
		}
		if u.Want > 0 {
			args = append(args, u.Want)
		}
		if looksAtHolds(u) {
			args = append(args, holdName(u), u.HeldFor().Microseconds())
			holds = append(holds, u.Key+":h", u.Key+":o")
		}
		if part {
			args = append(args, u.Key, u.Share)
			demands = append(demands, u.Of+":d0", u.Of+":d1")
		}
		if u.Op == limit.Refund {
			when := int64(0)
			if !u.At.IsZero() {
				when = u.At.UnixMicro()
			}
			args = append(args, when)
		}
		if len(j.ids) > 0 {
			args = append(args, remembered(u).Milliseconds())
			ids = append(ids, idKey(keys[i], j.ids[i]))
		}
		if u.Op == limit.Reset || u.Op == limit.Refund && !u.At.IsZero() {
			resets = append(resets, u.Key+":r")
		}
	}
	return slices.Concat(keys, holds, resets, demands, ids), args
}

// opFlags are the flags of a use in decide.lua.
func opFlags(u *limit.Use) string {
	if u.Op == limit.Take && !u.Observe && u.Want == 0 && !looksAtHolds(u) {
		return "" // the usual use
	}
	flags := ""
	if u.Observe {
		flags = "o"
	}
	if u.Want > 0 {
		flags += "w"
	}
	if looksAtHolds(u) {
		flags += "h"
	}
	switch u.Op {
	case limit.Take:
	case limit.Charge:
		flags += "C"
	case limit.Settle:
		flags += "S"
	case limit.Refund:
		flags += "R"
	case limit.Reset:
		flags += "X"
	}
	return flags
}

// looksAtHolds: reading them costs Redis a command, so of a limit whose uses are
// not held nobody asks.
func looksAtHolds(u *limit.Use) bool {
	switch {
	case u.Limit.CountsRefused():
		return false
	case u.Limit.Algorithm() == limit.Concurrency, u.Hold != "", u.HoldFor > 0:
		return true
	}
	return u.Op == limit.Settle || u.Op == limit.Reset
}

// fill turns the script's answer into outcomes.
func (j *job) fill(values []int64) error {
	const each = 5
	n := len(j.uses)
	if len(values) != each*n+1 {
		return fmt.Errorf("redis script answered %d numbers for %d limits", len(values), n)
	}
	now := time.UnixMicro(values[len(values)-1])
	for i := range j.uses {
		u, v := &j.uses[i], values[each*i:each*(i+1)]
		most := int64(max(u.Limit.Requests(), u.Limit.Burst()))
		j.outcomes[i] = limit.Outcome{
			Over:       v[0] == 1,
			Remaining:  uint32(min(max(v[1], 0), most)), //nolint:gosec // from 0 to a uint32
			RetryAfter: time.Duration(v[2]) * time.Microsecond,
			Reset:      time.Duration(v[3]) * time.Microsecond,
			// Not more than was asked for, whatever Redis says.
			Taken: min(uint64(max(v[4], 0)), max(u.Bounded(), u.Want)), //nolint:gosec // not negative
			At:    now,
		}
		if u.Limit.CountsRefused() {
			j.outcomes[i].At = j.now.Truncate(time.Microsecond)
		}
	}
	return nil
}

type silent struct{}

func (silent) Printf(context.Context, string, ...any) {}

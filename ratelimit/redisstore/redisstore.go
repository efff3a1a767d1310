// Package redisstore keeps the counters of rate limits in Redis, so that any
// number of replicas count as one. It is the only package that knows go-redis.
//
// A decision over several limits is one call of one script (decide.lua), hence
// one round trip and atomic. A few workers carry the decisions to Redis in
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
// given back in other slots than that of the refusal is done all the same.
package redisstore

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	_ "embed" // decide.lua
	"errors"
	"fmt"
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
	queue   chan *job
	jobs    sync.Pool

	epoch    time.Time
	answered atomic.Int64 // when Redis last answered, by elapsed
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
	s := &Store{client: client, sha: redis.NewScript(source).Hash(), options: o, queue: make(chan *job, queueLength), epoch: time.Now()}
	s.jobs.New = func() any { return &job{done: make(chan error, 1)} }
	return s, nil
}

// Run carries decisions to Redis until ctx ends; then it closes the connections.
func (s *Store) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for range s.options.Workers {
		g.Go(func() error { return s.work(ctx) })
	}
	err := g.Wait()
	return errors.Join(err, s.client.Close())
}

// Decide makes one decision over all uses and puts what became of each into
// outcomes, which is as long as uses. Sliding limits are taken from only if no
// enforced one of them is over. With an error outcomes are not set.
func (s *Store) Decide(ctx context.Context, now time.Time, uses []limit.Use, outcomes []limit.Outcome) error {
	j := s.jobs.Get().(*job) //nolint:forcetypeassert // see New
	j.now = now
	j.sent.Store(0)
	j.uses = append(j.uses[:0], uses...) // the caller may go before the worker does
	j.outcomes = append(j.outcomes[:0], outcomes...)
	if j.timer == nil {
		j.timer = time.NewTimer(s.options.Timeout)
	} else {
		j.timer.Reset(s.options.Timeout)
	}
	begin := s.elapsed()
	select {
	case s.queue <- j:
	default:
		j.timer.Stop()
		return ErrBusy
	}
	for {
		select {
		case err := <-j.done:
			j.timer.Stop()
			copy(outcomes, j.outcomes)
			s.jobs.Put(j)
			return err
		case <-j.timer.C:
			left := s.patience(j, begin)
			if left <= 0 {
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
func (s *Store) patience(j *job, begin time.Duration) time.Duration {
	now, since := s.elapsed(), begin
	if sent := time.Duration(j.sent.Load()); sent > 0 {
		since = sent
	} else if answered := time.Duration(s.answered.Load()); answered > begin {
		since = answered
	}
	return min(since+s.options.Timeout-now, begin+maxWait*s.options.Timeout-now)
}

// elapsed is a clock for waiting; it is never 0.
func (s *Store) elapsed() time.Duration { return time.Since(s.epoch) + 1 }

// job is one decision on its way. Who gave it up sets abandoned and leaves it to
// the worker; only a finished one is used again.
type job struct {
	now       time.Time
	uses      []limit.Use
	outcomes  []limit.Outcome
	abandoned atomic.Bool
	done      chan error
	timer     *time.Timer
	sent      atomic.Int64 // when, by Store.elapsed; 0 while it waits for a worker
	parts     []part
}

// part is what one command decides of a job: all of it, or in a cluster what is of
// one slot.
type part struct {
	uses []int // places in the job's uses, nil for all
	cmd  *redis.Cmd
	err  error
	over bool // it is answered
}

func (s *Store) work(ctx context.Context) error {
	batch := make([]*job, 0, maxBatch)
	for {
		batch = batch[:0]
		select {
		case <-ctx.Done():
			return ctx.Err()
		case j := <-s.queue:
			batch = append(batch, j)
		}
		for more := true; more && len(batch) < maxBatch; {
			select {
			case j := <-s.queue:
				batch = append(batch, j)
			default:
				more = false
			}
		}
		s.carry(ctx, batch)
	}
}

// carry sends a batch; if Redis does not know the script (it restarted empty, or
// another one is the master), once more when it does.
func (s *Store) carry(ctx context.Context, batch []*job) {
	rest := batch[:0]
	for _, j := range batch {
		if !j.abandoned.Load() {
			s.split(j)
			rest = append(rest, j)
		}
	}
	if rest = s.send(ctx, rest, false); len(rest) > 0 {
		s.client.ScriptLoad(ctx, source) // what it says, the commands say again
		s.send(ctx, rest, true)
	}
}

// split makes the parts of a job.
func (s *Store) split(j *job) {
	j.parts = j.parts[:0]
	if len(s.options.Cluster) == 0 || len(j.uses) == 1 {
		j.parts = append(j.parts, part{})
		return
	}
	at := make(map[uint16]int)
	for i := range j.uses {
		slot := slot(j.uses[i].Limit.CounterKey(j.uses[i].Key, j.now))
		k, known := at[slot]
		if !known {
			k = len(j.parts)
			at[slot] = k
			j.parts = append(j.parts, part{})
		}
		j.parts[k].uses = append(j.parts[k].uses, i)
	}
	if len(j.parts) == 1 {
		j.parts[0].uses = nil
	}
}

// send returns the jobs of which some part found no script.
func (s *Store) send(ctx context.Context, jobs []*job, last bool) (again []*job) {
	if len(jobs) == 0 {
		return nil
	}
	pipe := s.client.Pipeline()
	for _, j := range jobs {
		for k := range j.parts {
			if p := &j.parts[k]; !p.over {
				keys, args := s.arguments(j, p.uses)
				p.cmd = pipe.EvalSha(ctx, s.sha, keys, args...)
			}
		}
	}
	sent := int64(s.elapsed())
	for _, j := range jobs {
		j.sent.Store(sent)
	}
	_, failed := pipe.Exec(ctx)
	if failed == nil {
		s.answered.Store(int64(s.elapsed()))
	}
	for _, j := range jobs {
		if j.answered(failed, last) {
			s.compensate(j)
			j.done <- j.err()
		} else {
			again = append(again, j)
		}
	}
	return again
}

// answered takes in what was said to the parts of a job; it is false if some of
// them found no script and may be sent again.
func (j *job) answered(failed error, last bool) bool {
	all := true
	for k := range j.parts {
		p := &j.parts[k]
		if p.over {
			continue
		}
		var values []int64
		values, p.err = p.cmd.Int64Slice()
		if p.cmd.Err() == nil && p.cmd.Val() == nil && failed != nil {
			p.err = failed // it was not sent: Redis did not let us in
		}
		p.cmd = nil
		if !last && p.err != nil && redis.HasErrorPrefix(p.err, "NOSCRIPT") {
			all = false
			continue
		}
		if p.over = true; p.err == nil {
			p.err = j.fill(values, p.uses)
		}
	}
	return all
}

func (j *job) err() error {
	for _, p := range j.parts {
		if p.err != nil {
			return p.err
		}
	}
	return nil
}

// compensate gives back, in the background, what parts of a job took while another
// part refuses it. Until it has arrived others may be refused for it; nobody passes
// for it. In one slot, and without a cluster, there is nothing to give back.
func (s *Store) compensate(j *job) {
	if len(j.parts) < 2 || !refuses(j) {
		return
	}
	back := &job{now: j.now, done: make(chan error, 1)}
	for i := range j.uses {
		u, out := j.uses[i], &j.outcomes[i]
		if u.Op != limit.Take || u.Limit.CountsRefused() || out.Taken == 0 {
			continue
		}
		u.Op, u.Hits, u.Want, u.At = limit.Refund, out.Taken, 0, out.At
		if u.HeldFor() > 0 {
			u.Op, u.Hits = limit.Settle, 0
		}
		back.uses = append(back.uses, u)
		out.Remaining += uint32(out.Taken) //nolint:gosec // at most what was there before
		out.Taken = 0
	}
	if len(back.uses) == 0 {
		return
	}
	back.outcomes = make([]limit.Outcome, len(back.uses))
	select {
	case s.queue <- back:
	default: // it counts for its window: nobody passes for that
	}
}

// refuses says whether a job that parts of were taken for is refused.
func refuses(j *job) bool {
	for i := range j.uses {
		if u := &j.uses[i]; j.outcomes[i].Over && !u.Observe && !u.Limit.CountsRefused() {
			return j.err() == nil
		}
	}
	return false
}

// each goes over the uses of a part, nil for all.
func (j *job) each(uses []int, visit func(at, i int)) {
	if uses == nil {
		for i := range j.uses {
			visit(i, i)
		}
		return
	}
	for at, i := range uses {
		visit(at, i)
	}
}

// arguments are the keys and arguments of decide.lua.
func (s *Store) arguments(j *job, uses []int) (keys []string, args []any) {
	const head, each = 2, 5
	keys = make([]string, 0, len(j.uses))
	args = make([]any, 0, head+each*len(j.uses))
	var now int64
	callers := j.now.UnixMicro()
	if s.options.CallersClock {
		now = callers
	}
	args = append(args, now, callers)
	var holds []string
	j.each(uses, func(at, i int) {
		u := &j.uses[i]
		keys = append(keys, u.Limit.CounterKey(u.Key, j.now))
		hits, flags := u.Bounded(), opFlags(u)
		if u.Op == limit.Refund && !u.At.IsZero() && u.Limit.CounterKey(u.Key, u.At) != keys[at] {
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
		if u.Op == limit.Refund {
			when := int64(0)
			if !u.At.IsZero() {
				when = u.At.UnixMicro()
			}
			args = append(args, when)
		}
	})
	return append(keys, holds...), args
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

// holdName gives a use that is held without a name one that is nobody else's.
func holdName(u *limit.Use) string {
	if u.Hold == "" && u.HeldFor() > 0 && u.Op != limit.Settle {
		return rand.Text()
	}
	return u.Hold
}

// fill turns the script's answer into outcomes.
func (j *job) fill(values []int64, uses []int) error {
	const each = 5
	n := len(j.uses)
	if uses != nil {
		n = len(uses)
	}
	if len(values) != each*n+1 {
		return fmt.Errorf("redis script answered %d numbers for %d limits", len(values), n)
	}
	now := time.UnixMicro(values[len(values)-1])
	j.each(uses, func(at, i int) {
		u, v := &j.uses[i], values[each*at:each*(at+1)]
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
	})
	return nil
}

type silent struct{}

func (silent) Printf(context.Context, string, ...any) {}

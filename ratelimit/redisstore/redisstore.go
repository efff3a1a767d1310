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
// One Redis is spoken to; all keys of one script must be on it. The callers' keys
// carry a hash tag per policy, so that counters of one policy stay together on a
// cluster.
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
	"github.com/redis/go-redis/v9/maintnotifications"
	"golang.org/x/sync/errgroup"

	"github.com/writ-mesh/writ/internal/listen"
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
	// ioTimeout is how long a worker waits for Redis. Callers do not: it only
	// has to end, and to be short enough that a worker is back soon.
	ioTimeout = 250 * time.Millisecond
)

// Options say where Redis is and how long to wait for it.
type Options struct {
	// Address is host:port or unix:///path.
	Address  string
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
	client  *redis.Client
	sha     string // of source, by which Redis knows it
	options Options
	queue   chan *job
	jobs    sync.Pool

	epoch    time.Time
	answered atomic.Int64 // when Redis last answered, by elapsed
}

// New returns a store. It does not connect; Decide needs Run to be running.
func New(o Options) (*Store, error) {
	if err := listen.Valid(o.Address); err != nil {
		return nil, fmt.Errorf("redis address: %w", err)
	}
	if o.Timeout <= 0 {
		o.Timeout = DefaultTimeout
	}
	if o.Workers <= 0 {
		o.Workers = defaultWorkers
	}
	network, addr := "tcp", o.Address
	if path, ok := listen.Unix(o.Address); ok {
		network, addr = "unix", path
	}
	// go-redis logs each failed dial to standard error by itself; what matters
	// comes back as an error and is counted and logged by the caller.
	redis.SetLogger(silent{})
	options := &redis.Options{
		Network: network, Addr: addr, Username: o.Username, Password: o.Password, DB: o.DB, TLSConfig: o.TLS,
		DialTimeout: time.Second, ReadTimeout: ioTimeout, WriteTimeout: ioTimeout, PoolTimeout: ioTimeout,
		DialerRetries: 1, MaxRetries: -1, // trying again is for who decides what a failure means
		PoolSize: o.Workers, DisableIdentity: true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	}
	options.Dialer = dialer(options)
	client := redis.NewClient(options)
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
	cmd       *redis.Cmd
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

// carry sends a batch; if Redis does not know the script (it restarted empty),
// once more with the script before it.
func (s *Store) carry(ctx context.Context, batch []*job) {
	rest := batch[:0]
	for _, j := range batch {
		if !j.abandoned.Load() {
			rest = append(rest, j)
		}
	}
	rest = s.send(ctx, rest, false)
	if len(rest) > 0 {
		s.send(ctx, rest, true)
	}
}

// send returns the jobs that found no script.
func (s *Store) send(ctx context.Context, jobs []*job, load bool) (again []*job) {
	if len(jobs) == 0 {
		return nil
	}
	pipe := s.client.Pipeline()
	if load {
		pipe.ScriptLoad(ctx, source)
	}
	for _, j := range jobs {
		keys, args := s.arguments(j)
		j.cmd = pipe.EvalSha(ctx, s.sha, keys, args...)
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
		values, err := j.cmd.Int64Slice()
		if j.cmd.Err() == nil && j.cmd.Val() == nil && failed != nil {
			err = failed // it was not sent: Redis did not let us in
		}
		j.cmd = nil
		if !load && err != nil && redis.HasErrorPrefix(err, "NOSCRIPT") {
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
	var holds []string
	for i := range j.uses {
		u := &j.uses[i]
		keys = append(keys, u.Limit.CounterKey(u.Key, j.now))
		hits, flags := u.Bounded(), opFlags(u)
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
			holds = append(holds, u.Key+":h")
		}
		if u.Op == limit.Refund {
			at := int64(0)
			if !u.At.IsZero() {
				at = u.At.UnixMicro()
			}
			args = append(args, at)
		}
	}
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
func (j *job) fill(values []int64) error {
	const each = 5
	if len(values) != each*len(j.uses)+1 {
		return fmt.Errorf("redis script answered %d numbers for %d limits", len(values), len(j.uses))
	}
	at := time.UnixMicro(values[len(values)-1])
	for i := range j.uses {
		u, v := &j.uses[i], values[each*i:each*(i+1)]
		most := int64(max(u.Limit.Requests(), u.Limit.Burst()))
		j.outcomes[i] = limit.Outcome{
			Over:       v[0] == 1,
			Remaining:  uint32(min(max(v[1], 0), most)), //nolint:gosec // from 0 to a uint32
			RetryAfter: time.Duration(v[2]) * time.Microsecond,
			Reset:      time.Duration(v[3]) * time.Microsecond,
			Taken:      uint64(max(v[4], 0)), //nolint:gosec // not negative
			At:         at,
		}
		if u.Limit.CountsRefused() {
			j.outcomes[i].At = j.now.Truncate(time.Microsecond)
		}
	}
	return nil
}

type silent struct{}

func (silent) Printf(context.Context, string, ...any) {}

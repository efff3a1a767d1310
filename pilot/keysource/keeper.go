package keysource

import (
	"cmp"
	"context"
	"crypto/x509"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/writ-mesh/writ/pilot/fetch"
	"github.com/writ-mesh/writ/pilot/model"
)

const (
	// minBackoff is when a place that failed is looked at again, twice as late each time
	// up to maxBackoff.
	minBackoff, maxBackoff = time.Second, time.Minute
	// minInterval is between two looks for the sake of an unknown key.
	minInterval = time.Second
	// Each change is a revision for many proxies. A place whose keys changed so often
	// within restlessFor for the sake of unknown keys is looked at in its turn only; and of
	// what is found in its turn so many changes come into force at once, then one every
	// restlessFor.
	restlessChanges, restlessFor = 4, time.Minute
	// settle is between two changes that are told of: what several places say in the same
	// moment is one revision.
	settle = 200 * time.Millisecond
	// maxLooks is how many places are looked at at once, each for mostTimeout at most.
	maxLooks = 128
)

// Options are what a Keeper needs.
type Options struct {
	Guard fetch.Guard
	// Roots are the authorities of servers, nil for the system's.
	Roots *x509.CertPool
	// State is the folder in which good sets are kept over a restart, empty for none.
	State   string
	Log     *slog.Logger
	Metrics prometheus.Registerer
}

// Place is where keys are, and who wants them.
type Place struct {
	model.KeyPlace
	// Issuers are those of the rules, sorted.
	Issuers []string
	// Timeout is for one look, 0 for the usual one.
	Timeout time.Duration
}

// Status is what is known of a place.
type Status struct {
	Place
	// Keys is how many are in force, Fetched when they were seen last, and Changed since
	// when they are the same; zero if there never were any.
	Keys             int
	Fetched, Changed time.Time
	// Err is why the last look gave nothing, nil if it did, and Failing since when.
	Err     error
	Failing time.Time
	// Next is when to look again; zero before the first look.
	Next time.Time
}

// Keeper has the key sets of all places. It is safe for concurrent use.
type Keeper struct {
	get     func(context.Context, fetch.Request) (fetch.Answer, error)
	roots   *x509.CertPool
	store   store
	log     *slog.Logger
	looks   *prometheus.CounterVec
	sets    *prometheus.GaugeVec
	slots   chan struct{}
	changed chan struct{}

	mu      sync.Mutex
	sources map[string]*source
	// told is when changed had a value last, or will.
	told time.Time
	// running has the loops; nil before Run and after its end.
	running context.Context //nolint:containedctx // the life of the loops that Set starts
	loops   sync.WaitGroup
}

// source is one place. What changes is under the keeper's mu.
type source struct {
	place   Place
	good    good
	failed  error
	failing time.Time
	next    time.Time
	// asked are when the set changed for the sake of unknown keys, the newest last.
	asked []time.Time
	// later came too soon after earlier changes; empty if nothing did.
	later good
	// due is when all changes that were found in turn would have come into force, at one
	// every restlessFor.
	due time.Time
	// ask has a value when somebody met an unknown key.
	ask  chan struct{}
	stop context.CancelFunc
}

// good is what a place gave last, as it is kept.
type good struct {
	// Place is its key.
	Place   string    `json:"place"`
	Keys    string    `json:"keys"`
	Count   int       `json:"count"`
	Tag     tag       `json:"tag"`
	Fetched time.Time `json:"fetched"`
	Changed time.Time `json:"changed"`
}

// New gives a Keeper without places.
func New(o Options) *Keeper {
	k := &Keeper{
		get: o.Guard.Get, roots: o.Roots, store: store{dir: o.State, log: o.Log}, log: o.Log,
		slots: make(chan struct{}, maxLooks), changed: make(chan struct{}, 1), sources: map[string]*source{},
		looks: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "writ_pilot_key_set_fetches_total", Help: "Looks at the key sets of token issuers.",
		}, []string{"result"}),
		sets: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "writ_pilot_key_sets", Help: "Key sets of token issuers that pilot fetches, by whether the last look gave them (current), failed (kept), or none ever gave any (missing).",
		}, []string{"state"}),
	}
	for _, result := range []string{"new", "unchanged", "failed"} {
		k.looks.WithLabelValues(result)
	}
	o.Metrics.MustRegister(k.looks, k.sets)
	k.count()
	return k
}

// Changed has a value when Sets gives something else than before, or Status another
// error.
func (k *Keeper) Changed() <-chan struct{} { return k.changed }

// tell is called with mu held, or before anybody else has k.
func (k *Keeper) tell() {
	k.count()
	now := time.Now()
	wait := k.told.Add(settle).Sub(now)
	switch {
	case wait > settle: // it is about to be told
	case wait > 0:
		k.told = now.Add(wait)
		time.AfterFunc(wait, k.signal)
	default:
		k.told = now
		k.signal()
	}
}

func (k *Keeper) signal() {
	select {
	case k.changed <- struct{}{}:
	default:
	}
}

func (k *Keeper) count() {
	n := map[string]float64{"current": 0, "kept": 0, "missing": 0}
	for _, s := range k.sources {
		switch {
		case s.good.Keys == "":
			n["missing"]++
		case s.failed != nil:
			n["kept"]++
		default:
			n["current"]++
		}
	}
	for state, v := range n {
		k.sets.WithLabelValues(state).Set(v)
	}
}

// Run looks at the places until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	k.mu.Lock()
	k.running = ctx
	for _, s := range k.sources {
		k.start(s)
	}
	k.mu.Unlock()
	<-ctx.Done()
	k.mu.Lock()
	k.running = nil
	k.mu.Unlock()
	k.loops.Wait()
	return nil
}

// Set says which places there are, each once. Of one that is new it takes up what was
// kept; what was kept of others is removed.
func (k *Keeper) Set(places []Place) {
	k.mu.Lock()
	defer k.mu.Unlock()
	there := map[string]bool{}
	for _, p := range places {
		key := p.Key()
		there[key] = true
		s := k.sources[key]
		if s == nil {
			s = &source{place: p, good: k.store.load(key), ask: make(chan struct{}, 1)}
			k.sources[key] = s
			k.start(s)
			continue
		}
		moved := !slices.Equal(s.place.Addresses, p.Addresses)
		s.place = p
		if moved {
			s.wake()
		}
	}
	for key, s := range k.sources {
		if !there[key] {
			if s.stop != nil {
				s.stop()
			}
			delete(k.sources, key)
		}
	}
	k.store.keep(there)
	k.count()
}

func (s *source) wake() {
	select {
	case s.ask <- struct{}{}:
	default:
	}
}

// Refetch has places looked at at once, because somebody met a key that is not known.
func (k *Keeper) Refetch(keys []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, key := range keys {
		if s := k.sources[key]; s != nil && !s.restless(time.Now()) {
			s.wake()
		}
	}
}

func (s *source) restless(now time.Time) bool {
	return len(s.asked) >= restlessChanges && now.Sub(s.asked[0]) < restlessFor
}

// start begins to look at a place.
func (k *Keeper) start(s *source) {
	if k.running == nil || k.running.Err() != nil {
		return
	}
	ctx, stop := context.WithCancel(k.running)
	s.stop = stop
	k.loops.Go(func() { k.follow(ctx, s) })
}

// follow looks at a place again and again.
func (k *Keeper) follow(ctx context.Context, s *source) {
	backoff, asked := minBackoff, false
	for {
		began := time.Now()
		wait, err := k.once(ctx, s, asked)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			wait = backoff*3/4 + rand.N(backoff/2)
			backoff = min(2*backoff, maxBackoff)
		} else {
			wait -= rand.N(wait/10 + 1) // never later than promised
			backoff = minBackoff
		}
		k.mu.Lock()
		if s.later.Keys != "" { // which is not to wait longer than it has to
			wait = min(wait, max(time.Until(s.takes()), minInterval))
		}
		s.next = time.Now().Add(wait)
		k.mu.Unlock()
		var on bool
		if asked, on = sleep(ctx, s.ask, began, wait); !on {
			return
		}
	}
}

// sleep waits, shorter if somebody asks; on is false if ctx ended.
func sleep(ctx context.Context, ask <-chan struct{}, began time.Time, wait time.Duration) (asked, on bool) {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false, false
	case <-timer.C:
		return false, true
	case <-ask:
	}
	timer.Reset(time.Until(began.Add(minInterval)))
	select {
	case <-ctx.Done():
		return false, false
	case <-timer.C:
		return true, true
	}
}

// once looks at a place once, because of an unknown key if asked, and says after how long
// to look again.
func (k *Keeper) once(ctx context.Context, s *source, asked bool) (time.Duration, error) {
	select {
	case k.slots <- struct{}{}:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	defer func() { <-k.slots }()
	k.mu.Lock()
	place, have := s.place, s.good.Tag
	k.mu.Unlock()
	a, err := k.look(ctx, place, have)
	k.mu.Lock()
	defer k.mu.Unlock()
	if ctx.Err() != nil {
		return 0, ctx.Err() // it is no longer asked for
	}
	if err != nil {
		k.fail(ctx, s, err)
		return 0, err
	}
	k.take(ctx, s, a, asked)
	return a.next, nil
}

func (k *Keeper) fail(ctx context.Context, s *source, err error) {
	k.looks.WithLabelValues("failed").Inc()
	if s.failed == nil {
		s.failing = time.Now()
	}
	if before := s.failed; before == nil || before.Error() != err.Error() {
		k.log.WarnContext(ctx, "the keys of a token issuer cannot be fetched; what was good last stays", slog.String("uri", s.place.URI), slog.Any("error", err))
		s.failed = err
		k.tell()
	}
	if now := time.Now(); s.later.Keys != "" && !now.Before(s.takes()) {
		k.inTurn(s, s.later, now)
	}
}

func (k *Keeper) take(ctx context.Context, s *source, a answer, asked bool) {
	now := time.Now()
	recovered := s.failed != nil
	s.failed, s.failing = nil, time.Time{}
	s.good.Fetched = now
	if a.unchanged || a.text == s.good.Keys {
		s.later = good{}
		k.looks.WithLabelValues("unchanged").Inc()
		if !a.unchanged {
			s.good.Tag = a.tag
		}
		if recovered {
			k.tell()
		}
		return
	}
	k.looks.WithLabelValues("new").Inc()
	found := good{Place: s.place.Key(), Keys: a.text, Count: len(a.set.Keys), Tag: a.tag, Fetched: now, Changed: now}
	k.log.InfoContext(ctx, "new keys of a token issuer", slog.String("uri", s.place.URI), slog.Int("keys", found.Count), slog.Int("left_out", len(a.set.Skipped)))
	switch {
	case s.good.Keys == "":
		k.inForce(s, found)
	case asked:
		s.asked = append(s.asked[max(0, len(s.asked)-restlessChanges+1):], now)
		k.inForce(s, found)
	case now.Before(s.takes()):
		if s.later.Keys == "" {
			k.log.WarnContext(ctx, "the keys of a token issuer change all the time; the new ones come into force later", slog.String("uri", s.place.URI), slog.Duration("in", s.takes().Sub(now)))
		}
		s.later = found
		if recovered {
			k.tell()
		}
	default:
		k.inTurn(s, found, now)
	}
}

// takes is from when on a change that is found in turn comes into force: the first few do
// at once.
func (s *source) takes() time.Time { return s.due.Add(-(restlessChanges - 1) * restlessFor) }

func (k *Keeper) inTurn(s *source, found good, now time.Time) {
	if s.due.Before(now) {
		s.due = now
	}
	s.due = s.due.Add(restlessFor)
	k.inForce(s, found)
}

func (k *Keeper) inForce(s *source, found good) {
	s.good, s.later = found, good{}
	k.store.save(s.good)
	k.tell()
}

// Sets gives what is in force by place. It is never changed later.
func (k *Keeper) Sets() map[string]string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out map[string]string
	for key, s := range k.sources {
		if s.good.Keys == "" {
			continue
		}
		if out == nil {
			out = map[string]string{}
		}
		out[key] = s.good.Keys
	}
	return out
}

// Status says what is known of each place, in the order of their URIs.
func (k *Keeper) Status() []Status {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := make([]Status, 0, len(k.sources))
	for _, key := range slices.Sorted(maps.Keys(k.sources)) {
		s := k.sources[key]
		out = append(out, Status{
			Place: s.place, Keys: s.good.Count, Fetched: s.good.Fetched, Changed: s.good.Changed,
			Err: s.failed, Failing: s.failing, Next: s.next,
		})
	}
	slices.SortStableFunc(out, func(a, b Status) int { return cmp.Compare(a.URI, b.URI) })
	return out
}

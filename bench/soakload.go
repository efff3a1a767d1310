package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"math/bits"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	commonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

const (
	soakWorkers = 256
	// ledgerLimit is what the limit that all requests count in lets pass in an hour.
	ledgerLimit = 4_000_000_000
	soakPolicy  = "default/soak"
	soakCaller  = "source.principal"
	watchEvery  = 100 * time.Millisecond
)

// soakLimit is a limit and the callers that ask for it.
type soakLimit struct {
	rule    soakRule
	callers int
	// part is how many of a hundred requests it gets.
	part int
	// holds is how long a place is held at most.
	holds time.Duration
	// tenants share each of the callers' limits: the first asks for half of it.
	tenants int
}

// limits are what the replicas enforce and what the accounts and picks are made from.
// How much is asked of each follows the rate, so that a slow soak meets them too.
func (s *soaking) limits() *configpb.QuotaPolicy {
	each := func(part, callers int) float64 { return float64(s.o.rate) * float64(part) / 100 / float64(callers) }
	// most is so much of what is asked for in the window.
	most := func(part, callers int, window time.Duration, times float64) int {
		return max(int(each(part, callers)*window.Seconds()*times), 2)
	}
	all := []soakLimit{
		{soakRule{name: "sliding, small", counts: slides, most: min(most(20, 20, time.Second, 0.5), 32), window: time.Second}, 20, 20, 0, 0},
		{soakRule{name: "sliding", counts: slides, most: most(20, 4, 2*time.Second, 0.7), window: 2 * time.Second}, 4, 20, 0, 0},
		{soakRule{name: "leased", counts: slides, leased: true, most: most(20, 1, 2*time.Second, 0.8), window: 2 * time.Second}, 1, 20, 0, 0},
		{soakRule{name: "gcra", counts: bucket, most: most(10, 4, time.Second, 1.2), burst: most(10, 4, time.Second, 0.04), window: time.Second}, 4, 10, 0, 0},
		{soakRule{name: "shared", counts: fairly, most: most(5, 1, 2*time.Second, 0.6), window: 2 * time.Second}, 1, 5, 0, 8},
		{soakRule{name: "never reached", counts: slides, most: most(15, 5, time.Second, 8), window: time.Second}, 5, 15, 0, 0},
		{soakRule{name: "places", counts: places, most: most(5, 4, 300*time.Millisecond, 0.6), window: 2 * time.Second}, 4, 5, 600 * time.Millisecond, 0},
		{soakRule{name: "all", counts: forever, most: ledgerLimit, window: time.Hour}, 1, 5, 0, 0},
	}
	p := &configpb.QuotaPolicy{Namespace: "default", Name: "soak"}
	for i, l := range all {
		l.rule.replicas = soakReplicas
		c := &configpb.Limit{Per: []string{soakCaller}, Requests: uint32(l.rule.most), Every: durationpb.New(l.rule.window)} //nolint:gosec // far below
		switch l.rule.counts {
		case bucket:
			c.Algorithm, c.Burst = configpb.QuotaGCRA, uint32(l.rule.burst) //nolint:gosec // far below
		case places:
			c.Algorithm = configpb.QuotaConcurrency
		case fairly:
			c.Fair = &configpb.QuotaFair{}
		case slides, forever:
		}
		if l.rule.leased {
			c.Mode = configpb.QuotaLeased
		}
		p.Limits = append(p.Limits, c)
		var accounts []*account
		for range l.callers {
			accounts = append(accounts, &account{rule: l.rule})
		}
		s.accounts = append(s.accounts, accounts...)
		for range l.part {
			s.picks = append(s.picks, pick{limit: i, holds: l.holds, tenants: l.tenants, accounts: accounts})
		}
	}
	return p
}

// pick is a limit that a request may be about.
type pick struct {
	limit    int
	holds    time.Duration
	tenants  int
	accounts []*account
}

func (s *soaking) ledgerEntry() *commonv3.RateLimitDescriptor {
	return soakEntry(s.picks[len(s.picks)-1].limit, 0, "", false)
}

// soakEntry asks for one limit as Envoy does.
func soakEntry(limit, caller int, hold string, done bool) *commonv3.RateLimitDescriptor {
	e := func(key, value string) *commonv3.RateLimitDescriptor_Entry {
		return &commonv3.RateLimitDescriptor_Entry{Key: key, Value: value}
	}
	d := &commonv3.RateLimitDescriptor{Entries: []*commonv3.RateLimitDescriptor_Entry{
		e(configpb.QuotaPolicyKey, soakPolicy), e(configpb.QuotaLimitKey, fmt.Sprint(limit)),
	}}
	if hold != "" {
		d.Entries = append(d.Entries, e(configpb.QuotaHoldKey, hold))
	}
	if done {
		d.Entries = append(d.Entries, e(configpb.QuotaDoneKey, "1"))
	}
	d.Entries = append(d.Entries, e(soakCaller, fmt.Sprintf("caller-%d", caller)))
	return d
}

func soakRequest(hits uint64, entries ...*commonv3.RateLimitDescriptor) *rlsv3.RateLimitRequest {
	for _, d := range entries {
		d.HitsAddend = wrapperspb.UInt64(hits)
	}
	return &rlsv3.RateLimitRequest{Domain: configpb.QuotaDomain, Descriptors: entries}
}

// load asks at a steady rate until the time is over.
func (s *soaking) load(ctx context.Context) {
	var wg sync.WaitGroup
	for w := range soakWorkers {
		wg.Go(func() {
			for n := w; ; n += soakWorkers {
				due := time.Duration(n) * time.Second / time.Duration(s.o.rate)
				if due > s.o.length || pause(ctx, due-s.now()) != nil {
					return
				}
				if late := int64(s.now() - due); late > s.slowest.Load() {
					s.slowest.Store(late)
				}
				s.ask(ctx, uint64(n)) //nolint:gosec // from 0 on
			}
		})
	}
	wg.Wait()
}

// ask makes the n-th request. Which it is follows from the seed.
func (s *soaking) ask(ctx context.Context, n uint64) {
	rng := rand.New(rand.NewPCG(s.o.seed, n)) //nolint:gosec // chance, not secrecy
	p := s.picks[rng.IntN(len(s.picks))]
	caller, r := rng.IntN(len(p.accounts)), s.replicas[rng.IntN(len(s.replicas))]
	a, hold := p.accounts[caller], ""
	if p.tenants > 0 { // the second half of the chances is the first one's
		caller = max(rng.IntN(2*p.tenants)-p.tenants, 0)
	}
	if p.holds > 0 {
		hold = fmt.Sprintf("hold-%d", n)
	}
	req := soakRequest(1, soakEntry(p.limit, caller, hold, false))
	if a.rule.counts != forever {
		req.Descriptors = append(req.Descriptors, soakRequest(1, s.ledgerEntry()).GetDescriptors()...)
	}
	s.gate.RLock()
	defer s.gate.RUnlock()
	a.begin()
	epoch, sent := s.ledger.now(), s.now()
	storm := s.weather.since() != 0
	within, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	resp, err := r.client.ShouldRateLimit(within, req)
	s.asked.Add(1)
	answered := s.now()
	if answered-sent >= s.o.patience*3/4 {
		a.slowly(sent, answered)
		r.slow.Add(1)
	}
	switch took := answered - sent; {
	case storm:
		s.storm.add(took)
	default:
		s.calm.add(took)
	}
	switch {
	case err != nil:
		s.failed.Add(1)
		a.fail(s.now)
	case resp.GetOverallCode() == rlsv3.RateLimitResponse_OVER_LIMIT:
		s.refused.Add(1)
		s.judge.take(a.refuse(sent, s.now), true)
	default:
		s.passed.Add(1)
		s.ledger.add(epoch)
		s.judge.take(a.pass(n, sent, s.now), false)
		if p.holds > 0 {
			s.endLater(ctx, n, p, caller, hold, r, time.Duration(rng.Int64N(int64(p.holds))))
		}
	}
}

// endLater tells the end of what holds a place, when it is over.
func (s *soaking) endLater(ctx context.Context, n uint64, p pick, caller int, hold string, r *soakReplica, after time.Duration) {
	s.ends.Add(1)
	time.AfterFunc(after, func() {
		defer s.ends.Done()
		p.accounts[caller].end(n, s.now(), false)
		within, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		if _, err := r.client.ShouldRateLimit(within, soakRequest(0, soakEntry(p.limit, caller, hold, true))); err != nil {
			s.failed.Add(1)
			return
		}
		p.accounts[caller].end(n, s.now(), true)
	})
}

// reading is how the replicas are at a time.
type reading struct {
	at              time.Duration
	rss, goroutines [soakReplicas]float64
}

// watch looks all the time whether Redis failed the replicas, and each second how much
// they need. As many failures as there were answers that took so long are those: they
// come a look later at most.
func (s *soaking) watch(ctx context.Context) error {
	const failed, degraded, running = "writ_ratelimit_store_errors_total", "writ_ratelimit_store_degraded", "go_goroutines"
	const owed = "writ_ratelimit_store_owed"
	var before [soakReplicas]float64
	var slow, failures [soakReplicas][2]float64 // in the last look and in this one
	last, looked := s.now(), -time.Hour
	earlier := last // the look before the last
	for pause(ctx, watchEvery) == nil {
		began, bad, owes := s.now(), false, false
		l := reading{at: began}
		for i, r := range s.replicas {
			values, err := metrics(ctx, r.monitoring, failed, degraded, owed, running)
			if ctx.Err() != nil {
				return nil //nolint:nilerr // the end of the soak
			}
			if err != nil {
				return fmt.Errorf("replica %d: %w", i, err)
			}
			l.rss[i], l.goroutines[i] = r.process.rss(), values[running]
			slow[i] = [2]float64{slow[i][1], float64(r.slow.Swap(0))}
			failures[i] = [2]float64{failures[i][1], values[failed] - before[i]}
			bad = bad || values[degraded] != 0 || failures[i][0] > slow[i][0]+slow[i][1]
			before[i] = values[failed]
			owes = owes || values[owed] != 0
		}
		if !owes {
			s.weather.settles(began, s.now())
		}
		if bad { // of this look or the last
			s.weather.disturbed(earlier-watchEvery, s.now())
		}
		s.judge.decide(earlier - watchEvery)
		if earlier, last = last, began; began-looked >= time.Second {
			looked = began
			s.looks = append(s.looks, l)
		}
	}
	return nil
}

// histogram counts how long answers took, in steps of a sixteenth.
type histogram struct{ counts [64 * 16]atomic.Int64 }

func (l *histogram) add(d time.Duration) {
	n := uint64(max(d.Microseconds(), 1)) //nolint:gosec // positive
	exp := bits.Len64(n) - 1
	frac := (n << 4 >> exp) & 15
	l.counts[exp*16+int(frac)].Add(1) //nolint:gosec // below 16
}

// at gives a percentile in thousandths, rounded up to its step, and of how many it is.
func (l *histogram) at(thousandths int64) (time.Duration, int64) {
	var all, seen int64
	for i := range l.counts {
		all += l.counts[i].Load()
	}
	for i := range l.counts {
		if seen += l.counts[i].Load(); seen*1000 >= all*thousandths && seen > 0 {
			exp, frac := i/16, i%16
			return time.Duration((uint64(16+frac+1)<<exp)>>4) * time.Microsecond, all //nolint:gosec // far below
		}
	}
	return 0, all
}

func (s *soaking) print(w io.Writer) {
	p := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format+"\n", args...) }
	p("%d faults:", s.audits)
	for _, name := range slices.Sorted(maps.Keys(s.dealt)) {
		p("  %3d %s", s.dealt[name], name)
	}
	p("%8s %22s %22s", "seconds", "resident MiB", "goroutines")
	for i := 0; i < len(s.looks); i += max(len(s.looks)/20, 1) {
		l := s.looks[i]
		p("%8.0f %10.1f %10.1f %10.0f %10.0f", l.at.Seconds(), l.rss[0], l.rss[1], l.goroutines[0], l.goroutines[1])
	}
	for name, l := range map[string]*histogram{"calm": &s.calm, "during a fault": &s.storm} {
		p50, n := l.at(500)
		p99, _ := l.at(990)
		p999, _ := l.at(999)
		p("%-15s p50 %s, p99 %s, p99.9 %s of %d", name, micro(p50), micro(p99), micro(p999), n)
	}
	p("asked %d, passed %d, refused %d, without an answer %d; the load came %.0f ms behind at most", s.asked.Load(), s.passed.Load(), s.refused.Load(), s.failed.Load(), float64(s.slowest.Load())/1e6)
	p("judged by the strict bound %d of %d (%.0f %%; %.0f %% of those without a fault of ours), the others by that of a disturbed service", s.judge.strictly, s.judge.answers,
		100*float64(s.judge.strictly)/float64(max(s.judge.answers, 1)), 100*float64(s.judge.strictly)/float64(max(s.judge.calm, 1)))
	p("refused wrongly %d, passed beyond the bound %d (at most %d above a limit while disturbed), passed and not counted %d in %d audits, counted twice %d",
		s.judge.refusedWrongly, s.judge.overshot, s.judge.worst, s.lost, s.audits, s.ledger.all)
	if s.away > 0 {
		p("%d times a replica did not come back within %s", s.away, comesBack)
	}
	for _, e := range s.judge.examples {
		p("  %s", e)
	}
}

// failure says what of the goal was missed.
func (s *soaking) failure() error {
	switch grown, goroutines := s.growth(); {
	case s.away > 0:
		return fmt.Errorf("seed %d: %d times a replica did not come back within %s of the end of a fault", s.o.seed, s.away, comesBack)
	case s.judge.refusedWrongly+s.judge.overshot > 0 || s.lost > 0 || s.failed.Load() > 0:
		return fmt.Errorf("seed %d: answers were wrong: %d refused, %d passed, %d lost, %d none", s.o.seed, s.judge.refusedWrongly, s.judge.overshot, s.lost, s.failed.Load())
	case s.o.length >= 3*time.Minute && grown > 0:
		return fmt.Errorf("seed %d: resident memory grew by %.1f MiB", s.o.seed, grown)
	case s.o.length >= 3*time.Minute && s.judge.strictly*10 < s.judge.calm:
		return fmt.Errorf("seed %d: only %d of %d answers without a fault were judged by the strict bound: give the machine less to do, or Redis more -patience", s.o.seed, s.judge.strictly, s.judge.calm)
	case goroutines > 100:
		return fmt.Errorf("seed %d: %.0f more goroutines in the end than at first", s.o.seed, goroutines)
	}
	return nil
}

// growth is by how much more than a tenth and 5 MiB the memory of a replica grew from
// the second fifth to the last, and by how much its goroutines.
func (s *soaking) growth() (mib, goroutines float64) {
	fifth := len(s.looks) / 5
	if fifth == 0 {
		return 0, 0
	}
	for i := range soakReplicas {
		of := func(looks []reading, what func(reading) float64) float64 {
			var all []float64
			for _, l := range looks {
				all = append(all, what(l))
			}
			return median(all)
		}
		early, late := s.looks[fifth:2*fifth], s.looks[len(s.looks)-fifth:]
		rss := func(l reading) float64 { return l.rss[i] }
		mib = max(mib, of(late, rss)-1.1*of(early, rss)-5)
		running := func(l reading) float64 { return l.goroutines[i] }
		goroutines = max(goroutines, of(late, running)-of(early, running))
	}
	return mib, goroutines
}

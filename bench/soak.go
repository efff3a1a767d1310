package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protojson"

	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

// soakReplicas share the Redis of a soak.
const soakReplicas = 2

// soakReplica is one writ-ratelimit.
type soakReplica struct {
	monitoring string
	process    *process
	conn       *grpc.ClientConn
	client     rlsv3.RateLimitServiceClient
	slow       atomic.Int64 // answers that took as long as Redis is waited for, since it was last looked
}

// soak asks two replicas of ratelimit over one Redis, to which everything happens that
// can, and holds each answer against what may be answered.
func soak(ctx context.Context, o options) ([]row, error) {
	s, err := newSoak(ctx, o, filepath.Join(o.bin, "writ-ratelimit"))
	if err != nil {
		return nil, err
	}
	defer s.stop()
	if err := s.run(ctx); err != nil {
		return nil, err
	}
	s.print(os.Stdout)
	return nil, s.failure()
}

// soaking is a soak under way.
type soaking struct {
	o        options
	redis    *redisUnderTest
	replicas []*soakReplica
	accounts []*account
	picks    []pick
	ledger   ledger
	weather  weather
	judge    judge
	began    time.Time
	gate     sync.RWMutex // closed for an audit
	ends     sync.WaitGroup

	asked, passed, refused, failed atomic.Int64
	slowest                        atomic.Int64 // by how much the load came behind, at most
	lost                           int64
	audits, away                   int
	calm, storm                    histogram
	deck                           deck
	dealt                          map[string]int
	looks                          []reading
}

func newSoak(ctx context.Context, o options, program string) (s *soaking, err error) {
	s = &soaking{o: o, dealt: make(map[string]int), deck: deck{rng: rand.New(rand.NewPCG(o.seed, 1))}} //nolint:gosec // chance, not secrecy
	s.judge.weather = &s.weather
	defer func() {
		if err != nil {
			s.stop()
		}
	}()
	s.redis = &redisUnderTest{forgets: s.ledger.forgotten}
	if s.redis.process, s.redis.address, err = launchRedis(ctx, o); err != nil {
		return s, err
	}
	s.redis.start = func(ctx context.Context) (*process, error) { return launchRedisAt(ctx, o, s.redis.address) }
	if s.redis.way, err = openRedisWay(ctx, s.redis.address); err != nil {
		return s, err
	}
	policy := s.limits()
	for i := range soakReplicas {
		r, err := s.replica(ctx, i, policy, program)
		if err != nil {
			return s, err
		}
		s.replicas = append(s.replicas, r)
	}
	return s, nil
}

// replica starts one, which has its policies from where the last good ones are kept,
// for there is no pilot.
func (s *soaking) replica(ctx context.Context, i int, policy *configpb.QuotaPolicy, program string) (*soakReplica, error) {
	dir := filepath.Join(s.o.dir, strconv.Itoa(i))
	state := filepath.Join(dir, "state")
	if err := os.MkdirAll(state, 0o700); err != nil {
		return nil, err
	}
	text, err := protojson.Marshal(policy)
	if err != nil {
		return nil, err
	}
	if text, err = json.Marshal([]json.RawMessage{text}); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(state, "quota-policies.json"), text, 0o600); err != nil {
		return nil, err
	}
	r, listen := &soakReplica{}, "unix://"+filepath.Join(dir, "s")
	if r.monitoring, err = freeAddress(); err != nil {
		return nil, err
	}
	missing := filepath.Join(dir, "missing")
	conf := strings.Join([]string{
		"listen: " + listen, "monitoring: " + r.monitoring, "state: " + state, "pilot: 127.0.0.1:1",
		fmt.Sprintf("redis: {address: %q, timeout: %s}", s.redis.way.address, s.o.patience), "log: {level: error}",
		"credential: {ca: \"127.0.0.1:1\", dir: " + missing + ", token_file: " + missing + ", trust_bundle: " + missing + ", trust_domain: soak.test}",
	}, "\n") + "\n"
	path := filepath.Join(dir, "ratelimit.yaml")
	if err := os.WriteFile(path, []byte(conf), 0o600); err != nil {
		return nil, err
	}
	if r.process, err = launch(ctx, listen, program, "-config", path); err != nil {
		return nil, err
	}
	if r.conn, err = grpc.NewClient(listen, grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
		r.process.stop()
		return nil, err
	}
	r.client = rlsv3.NewRateLimitServiceClient(r.conn)
	return r, nil
}

func (s *soaking) stop() {
	for _, r := range s.replicas {
		_ = r.conn.Close()
		r.process.stop()
	}
	if s.redis.way != nil {
		s.redis.way.stop()
	}
	s.redis.stop()
}

// run is the soak: load, faults and who watches, until all its time is over.
func (s *soaking) run(ctx context.Context) error {
	_, _ = fmt.Fprintf(s.o.log, "soak: %s at %d a second, redis.timeout %s, seed %d\n", s.o.length, s.o.rate, s.o.patience, s.o.seed)
	s.began = time.Now()
	loading, stopLoad := context.WithCancel(ctx)
	defer stopLoad()
	watching, stopWatch := context.WithCancel(ctx)
	defer stopWatch()
	var load, watch sync.WaitGroup
	var watched error
	load.Go(func() { s.load(loading) })
	watch.Go(func() { watched = s.watch(watching) })
	err := s.trouble(ctx)
	stopLoad()
	load.Wait()
	s.ends.Wait()
	if err == nil {
		err = pause(ctx, 4*watchEvery) // what disturbed the last answers is known then
	}
	stopWatch()
	watch.Wait()
	s.judge.decide(s.now() + time.Hour)
	return errors.Join(err, watched)
}

// now is since the beginning.
func (s *soaking) now() time.Duration { return time.Since(s.began) }

// until is for how long there are faults: the rest is for what comes after the last.
func (s *soaking) until() time.Duration { return s.o.length - min(4*time.Second, s.o.length/4) }

// atMost is how long faults and what is between them last, at most, in a short soak.
func (s *soaking) atMost(d time.Duration) time.Duration {
	return max(min(d, s.o.length/6, s.until()-s.now()), 0)
}

// trouble deals faults, with calm in between, and audits after each.
func (s *soaking) trouble(ctx context.Context) error {
	for s.now() < s.until() {
		calm := s.o.calm/2 + time.Duration(s.deck.rng.Int64N(int64(s.o.calm)))
		if err := pause(ctx, s.atMost(calm)); err != nil {
			return err
		}
		f, lasts := s.deck.next()
		if err := s.befall(ctx, f, s.atMost(lasts)); err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		if err := s.audit(ctx, f.name); err != nil {
			return err
		}
	}
	return pause(ctx, s.o.length-s.now())
}

func (s *soaking) befall(ctx context.Context, f fault, lasts time.Duration) error {
	s.dealt[f.name]++
	begin := s.now()
	s.weather.set(true, begin)
	defer func() { s.weather.set(false, s.now()) }()
	if err := f.goes(ctx, s.redis); err != nil {
		return err
	}
	if err := pause(ctx, lasts); err != nil {
		return err
	}
	return f.returns(ctx, s.redis)
}

// comesBack is how long the replicas get to come back from a fault and to tell what
// passed meanwhile: on a machine that has nothing else to do it takes a second or two.
const comesBack = 15 * time.Second

// audit looks whether all that passed is counted, once the replicas had time to say so.
func (s *soaking) audit(ctx context.Context, after string) error {
	lost := int64(0)
	for deadline := s.now() + comesBack; ; {
		used, err := s.counted(ctx)
		if err == nil {
			if lost = s.ledger.audit(used); lost == 0 {
				break
			}
		}
		if s.now() > deadline {
			if err != nil {
				s.away++
				_, _ = fmt.Fprintf(s.o.log, "%.1f s: %s after %s: %v\n", s.now().Seconds(), comesBack, after, err)
				return nil
			}
			s.lost += lost
			_, _ = fmt.Fprintf(s.o.log, "%.1f s: %d that passed are not counted %s after %s\n", s.now().Seconds(), lost, comesBack, after)
			s.ledger.forgotten()
			break
		}
		if err := pause(ctx, 300*time.Millisecond); err != nil {
			return err
		}
	}
	s.audits++
	return nil
}

// counted is how much Redis has counted of all, while nothing is under way.
func (s *soaking) counted(ctx context.Context) (int64, error) {
	for _, r := range s.replicas {
		if away, err := metric(ctx, r.monitoring, "writ_ratelimit_store_degraded"); err != nil || away != 0 {
			return 0, errors.Join(err, errors.New("a replica decides alone"))
		}
	}
	s.gate.Lock()
	defer s.gate.Unlock()
	resp, err := s.replicas[0].client.ShouldRateLimit(ctx, soakRequest(0, s.ledgerEntry()))
	if err != nil {
		return 0, err
	}
	for _, h := range resp.GetResponseHeadersToAdd() {
		if h.GetKey() == "x-writ-quota" {
			return 0, errors.New("a replica decided alone")
		}
	}
	return ledgerLimit - int64(resp.GetStatuses()[0].GetLimitRemaining()), nil
}

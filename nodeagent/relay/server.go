package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-mesh/writ/nodeagent/attest"
	"github.com/writ-mesh/writ/nodeagent/lastgood"
)

const (
	// reachWait is how long a new stream waits for pilot before it is answered
	// from disk.
	reachWait = 300 * time.Millisecond
	// answerWait is how long a proxy that has no configuration waits for pilot's
	// first answer, if there is one on disk. It is longer than pilot takes to
	// compile a large mesh for its first proxy.
	answerWait = 3 * time.Second
	// silentWait is how long a stream stays on the answer from disk after pilot
	// did not answer though it was connected.
	silentWait = 10 * time.Second
	// refusedWait is the same after pilot said that it is not ready.
	refusedWait = time.Second
	// maxEarly bounds how many requests are remembered until the first answer; a
	// proxy with a thousand clusters sends about as many.
	maxEarly = 10_000
)

// Attestor says which workload the caller of a method is.
type Attestor interface {
	// AttestCaller returns a lease or a gRPC status error.
	AttestCaller(ctx context.Context) (*attest.Lease, error)
}

// Observer hears what happens, for metrics. It must not block.
type Observer interface {
	// ADSStream is called with 1 when a stream begins to be live or offline and
	// with -1 when it ends to be.
	ADSStream(live bool, change int)
	// NodeCorrected is called for each stream that claimed another node id.
	NodeCorrected()
}

// Config is what New needs.
type Config struct {
	Attestor Attestor
	Pilot    *Pilot
	Kept     *lastgood.Store
	// Node is the name of this node.
	Node string
	// Stopping is closed when streams have to end.
	Stopping <-chan struct{}
	Observer Observer
	Log      *slog.Logger
	// Now is time.Now if nil.
	Now func() time.Time
}

// Server implements the aggregated discovery service.
type Server struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	cfg Config
}

// New returns a server.
func New(cfg Config) *Server {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Server{cfg: cfg}
}

// DeltaAggregatedResources implements the incremental variant.
func (s *Server) DeltaAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	return serve(s, stream, variant[discoveryv3.DeltaDiscoveryRequest, discoveryv3.DeltaDiscoveryResponse]{
		session: func(c *lastgood.Config) session[*discoveryv3.DeltaDiscoveryRequest, *discoveryv3.DeltaDiscoveryResponse] {
			return newDelta(c, s.cfg.Now)
		},
		open:    discoveryv3.AggregatedDiscoveryServiceClient.DeltaAggregatedResources,
		typeURL: (*discoveryv3.DeltaDiscoveryRequest).GetTypeUrl,
	})
}

// StreamAggregatedResources implements the state-of-the-world variant.
func (s *Server) StreamAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	return serve(s, stream, variant[discoveryv3.DiscoveryRequest, discoveryv3.DiscoveryResponse]{
		session: func(c *lastgood.Config) session[*discoveryv3.DiscoveryRequest, *discoveryv3.DiscoveryResponse] {
			return newSotW(c, s.cfg.Now)
		},
		open:    discoveryv3.AggregatedDiscoveryServiceClient.StreamAggregatedResources,
		typeURL: (*discoveryv3.DiscoveryRequest).GetTypeUrl,
	})
}

// session is deltaSession or sotwSession: what is kept and what is answered, with
// no I/O. Q and P are pointers.
type session[Q, P any] interface {
	identify(req Q, first bool, proxyID, node string) (corrected bool)
	request(req Q) Q
	response(resp P)
	offline(req Q) P
	starts(req Q) bool
}

// variant is what the two variants of the protocol differ in, besides session.
type variant[Q, P any] struct {
	session func(*lastgood.Config) session[*Q, *P]
	open    func(discoveryv3.AggregatedDiscoveryServiceClient, context.Context, ...grpc.CallOption) (grpc.BidiStreamingClient[Q, P], error)
	typeURL func(*Q) string
}

// flow is one Envoy's stream.
type flow[Q, P any] struct {
	s        *Server
	v        variant[Q, P]
	down     grpc.BidiStreamingServer[Q, P]
	requests <-chan *Q
	config   *lastgood.Config
	proxyID  string

	// early are the requests up to now, for as long as nothing was answered to
	// the proxy: then another side can answer them. Only one goroutine at a time
	// uses it.
	mu       sync.Mutex
	early    []*Q
	answered bool
}

// errNoAnswer means that pilot has not answered and the proxy may be answered
// from disk.
type errNoAnswer struct{ retryIn time.Duration }

func (e errNoAnswer) Error() string { return "pilot does not answer" }

// errPromote means that pilot is back and nothing was sent to the proxy yet.
var errPromote = errors.New("pilot is back")

// serve runs one stream of an Envoy: live while that works, else offline.
func serve[Q, P any](s *Server, down grpc.BidiStreamingServer[Q, P], v variant[Q, P]) error {
	lease, err := s.cfg.Attestor.AttestCaller(down.Context())
	if err != nil {
		return err
	}
	defer lease.Release()
	if lease.Registered {
		return status.Errorf(codes.PermissionDenied, "%s is no proxy of the mesh: pilot has no configuration for it", lease.ID)
	}
	if !lease.Own {
		return status.Errorf(codes.PermissionDenied, "configuration is for Envoys that show the secret of their bootstrap: start that of %s with what `writ bootstrap` writes", lease.ProxyID)
	}
	ctx, cancel := context.WithCancelCause(down.Context())
	defer cancel(nil)
	go func() {
		select {
		case <-lease.Done():
			cancel(status.Errorf(codes.PermissionDenied, "the caller is no longer %s on this node", lease.ProxyID))
		case <-s.cfg.Stopping:
			cancel(status.Error(codes.Unavailable, "the node agent is stopping"))
		case <-ctx.Done():
		}
	}()
	f := &flow[Q, P]{s: s, v: v, down: down, proxyID: lease.ProxyID, config: s.cfg.Kept.Open(ctx, lease.ProxyID)}
	f.requests = f.receive(ctx)
	err = f.run(ctx)
	if cause := context.Cause(ctx); cause != nil && down.Context().Err() == nil {
		return cause
	}
	return err
}

func (f *flow[Q, P]) run(ctx context.Context) error {
	for {
		client, err := f.s.cfg.Pilot.get(ctx, reachWait)
		var silent errNoAnswer
		var back <-chan struct{}
		if err == nil {
			err = f.live(ctx, client)
			if !errors.As(err, &silent) {
				return err
			}
			back = after(ctx, silent.retryIn)
		} else {
			back = f.s.cfg.Pilot.back(ctx)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		f.s.cfg.Log.InfoContext(ctx, "pilot is away, answering from disk", slog.String("proxy", f.proxyID), slog.Bool("kept", !f.config.Empty()))
		if err := f.offline(ctx, back); !errors.Is(err, errPromote) {
			return err
		}
	}
}

// after returns a channel that is closed after a while or when ctx ends.
func after(ctx context.Context, wait time.Duration) <-chan struct{} {
	ctx, cancel := context.WithTimeout(ctx, wait)
	context.AfterFunc(ctx, cancel)
	return ctx.Done()
}

// receive reads, checks and corrects the proxy's requests until the stream ends,
// which it does when its handler returns.
func (f *flow[Q, P]) receive(ctx context.Context) <-chan *Q {
	out := make(chan *Q)
	s := f.v.session(f.config) // for its shape only
	go func() {
		defer close(out)
		corrected := false
		for first := true; ; first = false {
			req, err := f.down.Recv()
			if err != nil {
				return
			}
			if s.identify(req, first, f.proxyID, f.s.cfg.Node) && !corrected {
				corrected = true
				f.s.cfg.Observer.NodeCorrected()
				f.s.cfg.Log.WarnContext(ctx, "proxy claimed another node id, which was corrected", slog.String("proxy", f.proxyID))
			}
			select {
			case out <- req:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

// next returns the proxy's next request; io.EOF when it has gone. The request is
// remembered for as long as nothing was answered.
func (f *flow[Q, P]) next(ctx context.Context, stop <-chan struct{}) (*Q, error) {
	select {
	case req, ok := <-f.requests:
		if !ok {
			return nil, io.EOF
		}
		if err := checkType(f.v.typeURL(req)); err != nil {
			return nil, err
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		if !f.answered {
			if len(f.early) >= maxEarly {
				return nil, status.Errorf(codes.ResourceExhausted, "%d requests came before there was an answer", maxEarly)
			}
			f.early = append(f.early, req)
		}
		return req, nil
	case <-stop:
		return nil, errPromote
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// send sends to the proxy; from then on its requests are no longer remembered.
func (f *flow[Q, P]) send(resp *P) error {
	f.mu.Lock()
	f.answered, f.early = true, nil
	f.mu.Unlock()
	return f.down.Send(resp)
}

// replay returns the requests that another side has to answer.
func (f *flow[Q, P]) replay() []*Q {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]*Q(nil), f.early...)
}

func (f *flow[Q, P]) hasAnswered() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.answered
}

// live relays until one side ends. It returns errNoAnswer if the proxy may be
// answered from disk instead.
func (f *flow[Q, P]) live(ctx context.Context, client discoveryv3.AggregatedDiscoveryServiceClient) error {
	upCtx, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(nil)
	up, err := f.v.open(client, upCtx)
	if err != nil {
		return f.pilotFailed(err)
	}
	f.s.cfg.Observer.ADSStream(true, 1)
	defer f.s.cfg.Observer.ADSStream(true, -1)
	s := f.v.session(f.config)
	wg.Go(func() { cancel(f.pumpUp(upCtx, up, s)) })
	responses := make(chan *P)
	wg.Go(func() { cancel(pumpDown(upCtx, up, responses)) })
	silence := time.NewTimer(answerWait)
	defer silence.Stop()
	for {
		select {
		case resp := <-responses:
			s.response(resp)
			if err := f.send(resp); err != nil {
				return err
			}
		case <-upCtx.Done():
			return f.pilotFailed(context.Cause(upCtx))
		case <-silence.C:
			if f.couldStart(s) {
				return errNoAnswer{silentWait}
			}
		}
	}
}

// pumpUp carries requests to pilot. It ends with io.EOF when the proxy has gone.
func (f *flow[Q, P]) pumpUp(ctx context.Context, up grpc.BidiStreamingClient[Q, P], s session[*Q, *P]) error {
	for _, req := range f.replay() {
		if err := up.Send(s.request(req)); err != nil {
			<-ctx.Done() // the cause comes from Recv
			return err
		}
	}
	for {
		req, err := f.next(ctx, nil)
		if err != nil {
			return err
		}
		if err := up.Send(s.request(req)); err != nil {
			<-ctx.Done()
			return err
		}
	}
}

func pumpDown[Q, P any](ctx context.Context, up grpc.BidiStreamingClient[Q, P], out chan<- *P) error {
	for {
		resp, err := up.Recv()
		if err != nil {
			return errPilot{err}
		}
		select {
		case out <- resp:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// errPilot is an error of the stream to pilot.
type errPilot struct{ err error }

func (e errPilot) Error() string { return e.err.Error() }
func (e errPilot) Unwrap() error { return e.err }

// pilotFailed decides what the end of the stream to pilot means for the proxy's.
func (f *flow[Q, P]) pilotFailed(err error) error {
	var pilot errPilot
	switch {
	case errors.Is(err, io.EOF) && !errors.As(err, &pilot):
		return nil // the proxy has gone
	case !errors.As(err, &pilot):
		if _, ok := status.FromError(err); ok {
			return err
		}
		return status.FromContextError(err).Err()
	}
	code := status.Code(pilot.err)
	if code == codes.PermissionDenied || code == codes.InvalidArgument || code == codes.ResourceExhausted {
		return status.Error(code, fmt.Sprintf("pilot: %s", status.Convert(pilot.err).Message()))
	}
	if !f.hasAnswered() {
		return errNoAnswer{refusedWait}
	}
	return status.Error(codes.Unavailable, "the connection to pilot has ended")
}

// couldStart tells whether the proxy has no configuration and there is one on disk.
func (f *flow[Q, P]) couldStart(s session[*Q, *P]) bool {
	early := f.replay()
	return !f.hasAnswered() && len(early) > 0 && s.starts(early[0]) && !f.config.Empty()
}

// offline answers from disk until back is closed. It returns errPromote if nothing
// was sent by then.
func (f *flow[Q, P]) offline(ctx context.Context, back <-chan struct{}) error {
	f.s.cfg.Observer.ADSStream(false, 1)
	defer f.s.cfg.Observer.ADSStream(false, -1)
	s := f.v.session(f.config)
	for _, req := range f.replay() {
		if resp := s.offline(req); resp != nil {
			if err := f.send(resp); err != nil {
				return err
			}
		}
	}
	for {
		req, err := f.next(ctx, back)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, errPromote) && f.hasAnswered():
			return status.Error(codes.Unavailable, "pilot is back")
		case err != nil:
			return err
		}
		if resp := s.offline(req); resp != nil {
			if err := f.send(resp); err != nil {
				return err
			}
		}
	}
}

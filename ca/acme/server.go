package acme

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"
	stepacme "github.com/smallstep/certificates/acme"
	stepapi "github.com/smallstep/certificates/acme/api"
	steplog "github.com/smallstep/certificates/api/log"
	"github.com/smallstep/certificates/authority"
	"github.com/smallstep/certificates/authority/provisioner"
	"golang.org/x/net/netutil"

	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/internal/listen"
	"github.com/writ-mesh/writ/internal/service"
)

const (
	// maxConnections bounds the connections at one time: anybody may connect.
	maxConnections = 512
	// requestTime bounds a request, a validation included.
	requestTime = validationTime + 5*time.Second
)

// Options are what Open needs besides its configuration.
type Options struct {
	Authority Authority
	Store     ledger.Store
	// Watch calls f with the documents of Prefix and with what changes among them,
	// until ctx ends; all says that an update has every one there is.
	Watch func(ctx context.Context, f func(u ledger.Update, all bool) error) error
	// Root is one of the authority's.
	Root *x509.Certificate
	// Wait takes a request from an address, and tells who asks too much how long to
	// wait; 0 lets him in.
	Wait func(ctx context.Context, request string, from net.Addr) time.Duration
	// Now is the clock.
	Now     func() time.Time
	Log     *slog.Logger
	Metrics prometheus.Registerer
}

// server serves ACME.
type server struct {
	o         Options
	host      string
	d         *database
	issuer    *issuer
	validator *validator
	step      *authority.Authority
	acme      *provisioner.ACME
	linker    stepacme.Linker
	routes    http.Handler
	requests  *prometheus.CounterVec
}

// Open opens the address of a validated configuration; what it returns serves until
// its context ends.
func Open(ctx context.Context, c Config, o Options) (func(context.Context) error, error) {
	s, err := newServer(ctx, c, o)
	if err != nil {
		return nil, err
	}
	own, err := s.certificates(c)
	if err != nil {
		return nil, err
	}
	l, err := listen.Listen(c.Listen)
	if err != nil {
		return nil, fmt.Errorf("acme: %w", err)
	}
	h := &http.Server{
		Handler: s, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: requestTime + 5*time.Second,
		IdleTimeout: 30 * time.Second, MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(o.Log.Handler(), slog.LevelDebug),
		TLSConfig: &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}, GetCertificate: own},
	}
	l = netutil.LimitListener(l, maxConnections)
	serve := func(ctx context.Context) error {
		defer context.AfterFunc(ctx, func() { _ = h.Close() })()
		if err := h.ServeTLS(l, "", ""); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("acme: %w", err)
		}
		return ctx.Err()
	}
	return func(ctx context.Context) error { return s.run(ctx, serve) }, nil
}

// newServer reads what is in the ledger.
func newServer(ctx context.Context, c Config, o Options) (*server, error) {
	host, err := hostOf(c.URL)
	if err != nil {
		return nil, fmt.Errorf("acme.url: %w", err)
	}
	names, err := parsePatterns(c.Names)
	if err != nil {
		return nil, fmt.Errorf("acme.names: %w", err)
	}
	d := &database{
		store: o.Store, index: newIndex(), authority: o.Authority, names: names, bound: c.RequireExternalAccount,
		ttl: c.TTL.D(), now: o.Now, log: o.Log,
	}
	if d.externals, err = readExternal(c.ExternalAccounts, names); err != nil {
		return nil, err
	}
	key, err := sharedNonceKey(ctx, o.Store, d.entry("nonces begin", "", nil))
	if err != nil {
		return nil, fmt.Errorf("acme: %w", err)
	}
	d.nonces = newNonces(key, o.Now)
	docs, err := o.Store.List(ctx, Prefix)
	if err != nil {
		return nil, fmt.Errorf("acme: %w", err)
	}
	d.take(ctx, ledger.Update{Put: docs}, true)
	s := &server{o: o, host: host, d: d, issuer: newIssuer(d)}
	if s.validator, err = newValidator(c); err != nil {
		return nil, err
	}
	if s.step, s.acme, err = newStep(c, s.issuer, o.Authority, o.Root); err != nil {
		return nil, err
	}
	s.linker = linker{stepacme.NewLinker(host, "")}
	router := chi.NewRouter()
	stepapi.Route(router)
	s.routes = router
	s.measure()
	return s, nil
}

func (s *server) measure() {
	s.requests = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "writ_ca_acme_requests_total", Help: "Requests of ACME clients by resource and HTTP status.",
	}, []string{"resource", "status"})
	held := func(name, help string, of func(count) int) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 {
			_, total := s.d.index.of("")
			return float64(of(total))
		})
	}
	s.o.Metrics.MustRegister(s.requests,
		held("writ_ca_acme_accounts", "ACME accounts.", func(c count) int { return c.accounts }),
		held("writ_ca_acme_certificates", "Certificates of ACME clients that have not expired.", func(c count) int { return c.certificates }))
}

// run follows the ledger and forgets what is over while it serves.
func (s *server) run(ctx context.Context, serve func(context.Context) error) error {
	err := service.RunTasks(ctx, serve, s.d.sweep, func(ctx context.Context) error {
		return s.o.Watch(ctx, func(u ledger.Update, all bool) error {
			s.d.take(ctx, u, all)
			return nil
		})
	})
	if err != nil {
		return err
	}
	return ctx.Err()
}

// take lets the index know what changed.
func (d *database) take(ctx context.Context, u ledger.Update, all bool) {
	if err := d.index.take(u, all); err != nil {
		d.log.ErrorContext(ctx, "documents of ACME cannot be read; they are not used", slog.Any("error", err))
	}
}

// ServeHTTP implements http.Handler.
func (s *server) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r := &request{kind: kindOf(req.URL.Path)}
	answer := &counted{ResponseWriter: w, status: http.StatusOK}
	defer func() { s.requests.WithLabelValues(resource(r.kind), strconv.Itoa(answer.status)).Inc() }()
	if e := s.admit(answer, req, r); e != nil {
		e.Render(answer, req)
		return
	}
	ctx, cancel := context.WithTimeout(withRequest(req.Context(), r), requestTime)
	defer cancel()
	p := &provisionerFor{ACME: s.acme, issuer: s.issuer}
	defer func() {
		for _, undo := range p.done {
			undo()
		}
	}()
	var given stepacme.Provisioner = s.acme // smallstep looks for this very type
	if r.kind == "finalize" || r.kind == "revoke-cert" {
		given = p
	}
	ctx = stepacme.NewProvisionerContext(ctx, given)
	ctx = stepacme.NewContext(ctx, s.d, s.validator.forRequest(ctx), s.linker, nil)
	ctx = authority.NewContext(ctx, s.step)
	ctx = steplog.WithErrorLogger(ctx, s.failed)
	req = req.WithContext(ctx)
	if r.kind != keyChange {
		s.routes.ServeHTTP(answer, req)
		return
	}
	checked := &unanswered{ResponseWriter: answer}
	if s.routes.ServeHTTP(checked, req); checked.none {
		s.changeKey(answer, req)
	}
}

// admit looks at a request before smallstep's code does.
func (s *server) admit(w http.ResponseWriter, req *http.Request, r *request) *stepacme.Error {
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if wait := s.o.Wait(req.Context(), resource(r.kind), peer(req.RemoteAddr)); wait > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(wait/time.Second)+1))
		return problem(stepacme.ErrorRateLimitedType, http.StatusTooManyRequests, nil, "too many requests; try again in %s", wait.Round(time.Second))
	}
	if host := strings.TrimSuffix(strings.ToLower(req.Host), ":443"); host != s.host {
		return problem(stepacme.ErrorMalformedType, http.StatusMisdirectedRequest, nil, "this is https://%s", s.host)
	}
	// An escaped path is read in two ways, here and by what chooses the handler.
	if !strings.HasPrefix(req.URL.Path, "/"+provisionerName+"/") || req.URL.RawPath != "" || path.Clean(req.URL.Path) != req.URL.Path {
		return missing("resource")
	}
	if req.Method != http.MethodPost {
		return nil
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, req.Body, maxBody))
	if err != nil {
		return problem(stepacme.ErrorMalformedType, http.StatusRequestEntityTooLarge, err, "a request has %d bytes at most", maxBody)
	}
	req.Body = io.NopCloser(bytes.NewReader(body))
	return r.inspect(body)
}

// failed logs why a request was refused; clients are told less.
func (s *server) failed(_ http.ResponseWriter, req *http.Request, err error) {
	level := slog.LevelDebug
	if e := new(stepacme.Error); !errors.As(err, &e) || e.Status >= http.StatusInternalServerError {
		level = slog.LevelWarn
	}
	r := requestFrom(req.Context())
	if e := new(stepacme.Error); r.kind == keyChange && errors.As(err, &e) && e.Status == http.StatusNotImplemented {
		return // answered by changeKey
	}
	s.o.Log.LogAttrs(req.Context(), level, "ACME request refused", slog.String("resource", resource(r.kind)),
		slog.String("account", r.account), slog.String("from", req.RemoteAddr), slog.Any("error", err))
}

// resource is a label for what a path leads to.
func resource(kind string) string {
	switch kind {
	case "directory", "new-nonce", "new-account", "account", "new-order", "order", "orders", "finalize", "authz", "challenge", "certificate", "revoke-cert", keyChange:
		return kind
	}
	return "other"
}

// peer makes an address of the text that net/http has.
func peer(remote string) net.Addr { return remoteAddr(remote) }

type remoteAddr string

// Network implements net.Addr.
func (a remoteAddr) Network() string {
	if strings.ContainsRune(string(a), ':') {
		return "tcp"
	}
	return "unix"
}

// String implements net.Addr.
func (a remoteAddr) String() string { return string(a) }

// counted remembers the status of an answer.
type counted struct {
	http.ResponseWriter

	status int
}

// WriteHeader implements http.ResponseWriter.
func (c *counted) WriteHeader(status int) {
	c.status = status
	c.ResponseWriter.WriteHeader(status)
}

// linker makes the links of smallstep's linker for the one host there is. The
// provisioner is in the context already.
type linker struct{ stepacme.Linker }

// Middleware implements acme.Linker.
func (linker) Middleware(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if chi.URLParam(req, "provisionerID") != provisionerName {
			e := missing("resource")
			e.Render(w, req)
			return
		}
		next.ServeHTTP(w, req)
	})
}

package bundle

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/writ-mesh/writ/authz/rego"
)

// RemoteOptions name one bundle and the query that decides by it.
type RemoteOptions struct {
	// URL is http://, https:// or oci://host/path.
	URL string
	// Refresh is how often it is looked for where the server does not hold requests
	// until there is news; zero means a minute.
	Refresh time.Duration
	// Key is a PEM public key for Algorithm by which the bundle has to be signed, in
	// Scope; empty for none.
	Key, Algorithm, Scope string
	// Credentials are shown to the server.
	Credentials Credentials
	Query       string
	// Folder keeps the bundle over a restart; empty for nowhere.
	Folder string
	Rego   rego.Options
	Log    *slog.Logger
	// Ahead: see Options.
	Ahead Ahead
	// Swapped is called with each snapshot once it is in force, Report with what came
	// of each attempt.
	Swapped func(*Snapshot)
	Report  func(Report)
}

// defaultRefresh and longPollTime are OPA's documented defaults and example.
const (
	defaultRefresh = time.Minute
	longPollTime   = 60 * time.Second
)

const (
	remoteName   = "policy"
	remotePlugin = "writ"
)

// NewRemote makes a manager for one bundle; nothing is asked for before Run.
func NewRemote(ctx context.Context, o RemoteOptions) (*Manager, error) {
	if err := rego.CheckQuery(o.Query); err != nil {
		return nil, err
	}
	config, err := o.config()
	if err != nil {
		return nil, err
	}
	state := &remoteState{report: o.Report, last: Report{Name: remoteName}}
	return NewManager(ctx, Options{
		Config: config, Plugin: remotePlugin, Read: func([]byte) (string, func(), error) { return o.Query, nil, nil },
		Rego: o.Rego, OnlyBundles: true, credentials: o.Credentials, Console: io.Discard, Log: o.Log, Metrics: prometheus.NewRegistry(),
		Ahead: o.Ahead,
		Swapped: func(s *Snapshot) {
			o.Swapped(s)
			state.usable(nil)
		},
		Rejected: state.usable,
		Report: func(all []Report) {
			for _, r := range all {
				state.loaded(r)
			}
		},
	})
}

// remoteState joins what OPA says of a bundle with whether its activation can be
// used here.
type remoteState struct {
	report func(Report)

	mu   sync.Mutex
	last Report
	// unusable is why what OPA has activated is not in force; nil if it is.
	unusable error
}

// loaded takes OPA's word.
func (s *remoteState) loaded(r Report) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = r
	if r.Err == nil {
		r.Err = s.unusable
	}
	s.report(r)
}

// usable takes ours, which comes after it.
func (s *remoteState) usable(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unusable = err
	r := s.last
	r.Attempted = err != nil
	if err != nil {
		r.Err = err
	}
	s.report(r)
}

// config is OPA's configuration for the bundle.
func (o *RemoteOptions) config() ([]byte, error) {
	u, err := url.Parse(o.URL)
	if err != nil || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/") == "" {
		return nil, fmt.Errorf("bundle %q: want http://, https:// or oci://host/path", o.URL)
	}
	service := map[string]any{"url": u.Scheme + "://" + u.Host}
	resource := strings.TrimPrefix(u.RequestURI(), "/")
	switch u.Scheme {
	case "http", "https":
	case "oci":
		service = map[string]any{"url": "https://" + u.Host, "type": "oci"}
		resource = u.Host + u.Path
	default:
		return nil, fmt.Errorf("bundle %q: want http://, https:// or oci://host/path", o.URL)
	}
	if err := o.Credentials.check(u); err != nil {
		return nil, fmt.Errorf("bundle %q: %w", o.URL, err)
	}
	refresh := o.Refresh
	if refresh <= 0 {
		refresh = defaultRefresh
	}
	seconds := max(1, int64(math.Ceil(refresh.Seconds())))
	polling := map[string]any{"min_delay_seconds": seconds, "max_delay_seconds": seconds, "long_polling_timeout_seconds": int64(longPollTime.Seconds())}
	source := map[string]any{"service": "s", "resource": resource, "polling": polling, "persist": o.Folder != ""}
	config := map[string]any{"services": map[string]any{"s": service}, "bundles": map[string]any{remoteName: source}}
	if o.Folder != "" {
		config["persistence_directory"] = o.Folder
	}
	if o.Key != "" {
		config["keys"] = map[string]any{"k": map[string]any{"key": o.Key, "algorithm": o.Algorithm, "scope": o.Scope}}
		source["signing"] = map[string]any{"keyid": "k", "scope": o.Scope}
	}
	return json.Marshal(config)
}

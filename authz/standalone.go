package authz

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"regexp"
	"runtime/debug"
	"strings"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/structpb"
	"sigs.k8s.io/yaml"

	"github.com/writ-mesh/writ/authz/rego"
	"github.com/writ-mesh/writ/internal/listen"
)

// Standalone is the service in place of the OPA-Envoy plugin.
type Standalone struct {
	// ConfigFile is the file for `opa run --config-file`; empty means defaults.
	ConfigFile string
	// Paths are the arguments of `opa run`: files, folders, tarballs.
	Paths []string
	// Bundle takes each path for a bundle, as `opa run --bundle`.
	Bundle bool
	// V0 reads Rego as OPA before 1.0, as `opa run --v0-compatible`.
	V0 bool
	// PlainTextAnywhere lets it listen in plain text on more than this machine.
	PlainTextAnywhere bool

	// what Validate made of the file
	plugin pluginConfig
	query  string
	source rego.Source
	log    string
	set    *rego.MessageSet
}

// pluginConfig is the section plugins.envoy_ext_authz_grpc; the meaning of each
// key is documented at https://www.openpolicyagent.org/docs/envoy.
type pluginConfig struct {
	Addr                     string    `json:"addr"`
	Path                     string    `json:"path"`
	Query                    string    `json:"query"`
	DryRun                   bool      `json:"dry-run"`
	EnableReflection         bool      `json:"enable-reflection"`
	ProtoDescriptor          string    `json:"proto-descriptor"`
	MaxRecv                  int       `json:"grpc-max-recv-msg-size"`
	MaxSend                  int       `json:"grpc-max-send-msg-size"`
	SkipBody                 bool      `json:"skip-request-body-parse"`
	EnablePerformanceMetrics bool      `json:"enable-performance-metrics"`
	Buckets                  []float64 `json:"grpc-request-duration-seconds-buckets"`
}

// opaConfig is the part of OPA's configuration that is read. Sections that only
// describe (labels) or that concern OPA's own API (server, status to console) are
// accepted and without effect; those that would change decisions and are not
// here are refused.
type opaConfig struct {
	Services     any                     `json:"services"`
	Labels       map[string]string       `json:"labels"`
	Bundles      map[string]bundleConfig `json:"bundles"`
	DecisionLogs *decisionLogsConfig     `json:"decision_logs"`
	Plugins      map[string]any          `json:"plugins"`
	Status       map[string]any          `json:"status"`
	Server       map[string]any          `json:"server"`
	Caching      map[string]any          `json:"caching"`
	Persistence  string                  `json:"persistence_directory"`
	Default      string                  `json:"default_decision"`
	DefaultAuthz string                  `json:"default_authorization_decision"`
	Keys         map[string]any          `json:"keys"`
	Discovery    map[string]any          `json:"discovery"`
	Storage      map[string]any          `json:"storage"`
	Tracing      map[string]any          `json:"distributed_tracing"`
	NDCache      bool                    `json:"nd_builtin_cache"`
}

type bundleConfig struct {
	Service  string         `json:"service"`
	Resource string         `json:"resource"`
	Signing  map[string]any `json:"signing"`
	Persist  bool           `json:"persist"`
	Polling  map[string]any `json:"polling"`
	Size     int64          `json:"size_limit_bytes"`
}

type decisionLogsConfig struct {
	Console   bool           `json:"console"`
	Service   string         `json:"service"`
	Plugin    string         `json:"plugin"`
	Reporting map[string]any `json:"reporting"`
	Mask      string         `json:"mask_decision"`
	Drop      string         `json:"drop_decision"`
	Partition string         `json:"partition_name"`
	Resource  string         `json:"resource"`
	Context   map[string]any `json:"request_context"`
}

const pluginName = "envoy_ext_authz_grpc"

// The plugin's defaults.
const (
	defaultAddr    = ":9191"
	defaultPath    = "envoy/authz/allow"
	defaultMaxRecv = 4 << 20
)

// Validate reads the file and checks that this version can do what it asks for.
func (s *Standalone) Validate() error {
	var c opaConfig
	if s.ConfigFile != "" {
		b, err := os.ReadFile(s.ConfigFile)
		if err != nil {
			return fmt.Errorf("opa configuration: %w", err)
		}
		if err := yaml.UnmarshalStrict(substitute(b), &c); err != nil {
			return fmt.Errorf("%s: %s", s.ConfigFile, strings.ReplaceAll(err.Error(), "\n", " "))
		}
	}
	if err := s.readPlugin(c.Plugins); err != nil {
		return fmt.Errorf("%s: %w", s.ConfigFile, err)
	}
	if err := s.readSections(&c); err != nil {
		return fmt.Errorf("%s: %w", s.ConfigFile, err)
	}
	return s.readSource(c.Bundles)
}

// substitute puts environment variables in for ${NAME}, as OPA does.
func substitute(b []byte) []byte {
	return regexp.MustCompile(`\$\{([^}]*)\}`).ReplaceAllFunc(b, func(m []byte) []byte {
		return []byte(os.Getenv(strings.TrimSpace(string(m[2 : len(m)-1]))))
	})
}

func (s *Standalone) readPlugin(plugins map[string]any) error {
	s.plugin = pluginConfig{Addr: defaultAddr, MaxRecv: defaultMaxRecv}
	for name, section := range plugins {
		if name != pluginName {
			return notSupported("plugins." + name)
		}
		b, err := yaml.Marshal(section)
		if err == nil {
			err = yaml.UnmarshalStrict(b, &s.plugin)
		}
		if err != nil {
			return fmt.Errorf("plugins.%s: %s", name, strings.ReplaceAll(err.Error(), "\n", " "))
		}
	}
	p := &s.plugin
	switch {
	case p.Path != "" && p.Query != "":
		return fmt.Errorf("plugins.%s: path and query are both set, give one", pluginName)
	case p.Query != "":
		s.query = p.Query
	case p.Path == "":
		p.Path = defaultPath
		fallthrough
	default:
		s.query = rego.QueryOfPath(p.Path)
	}
	if p.ProtoDescriptor != "" {
		b, err := os.ReadFile(p.ProtoDescriptor)
		if err == nil {
			s.set, err = rego.ReadMessageSet(b)
		}
		if err != nil {
			return fmt.Errorf("plugins.%s.proto-descriptor: %w", pluginName, err)
		}
	}
	_, err := s.address()
	return err
}

func (s *Standalone) readSections(c *opaConfig) error {
	s.log = logNone
	if d := c.DecisionLogs; d != nil {
		switch {
		case d.Service != "" || d.Resource != "":
			return notSupported("decision_logs.service")
		case d.Plugin != "":
			return notSupported("decision_logs.plugin")
		case d.Mask != "" || d.Drop != "":
			return notSupported("decision_logs.mask_decision and drop_decision")
		}
		if d.Console {
			s.log = logAll
		}
	}
	switch {
	case len(c.Discovery) > 0:
		return notSupported("discovery")
	case len(c.Storage) > 0:
		return notSupported("storage")
	case c.Status["service"] != nil:
		return notSupported("status.service")
	case len(c.Tracing) > 0:
		return notSupported("distributed_tracing")
	}
	return nil
}

func notSupported(what string) error {
	return fmt.Errorf("%s: not supported by this version of writ-authz", what)
}

// readSource finds the policies: the arguments, and bundles that are files.
func (s *Standalone) readSource(bundles map[string]bundleConfig) error {
	s.source = rego.Source{}
	for name, b := range bundles {
		path, ok := strings.CutPrefix(b.Resource, "file://")
		switch {
		case !ok:
			return fmt.Errorf("%s: %w", s.ConfigFile, notSupported("bundles."+name+" from a service (use resource: file:///path)"))
		case len(b.Signing) > 0:
			return fmt.Errorf("%s: %w", s.ConfigFile, notSupported("bundles."+name+".signing"))
		}
		s.source.Bundles = append(s.source.Bundles, path)
	}
	if s.Bundle {
		s.source.Bundles = append(s.source.Bundles, s.Paths...)
	} else {
		s.source.Paths = s.Paths
	}
	if len(s.source.Paths)+len(s.source.Bundles) == 0 {
		return errors.New("no policy: give .rego files, folders or bundles as arguments")
	}
	for _, p := range append(s.source.Paths, s.source.Bundles...) {
		if _, err := os.Stat(strings.TrimPrefix(p, "file://")); err != nil {
			return fmt.Errorf("policy: %w", err)
		}
	}
	return nil
}

// address turns the plugin's form of an address into ours: unix:///path or
// host:port. An address without host means this machine.
func (s *Standalone) address() (string, error) {
	addr := s.plugin.Addr
	if path, ok := strings.CutPrefix(addr, "unix://"); ok {
		if !strings.HasPrefix(path, "/") {
			return "", fmt.Errorf("addr %q: want unix:///absolute/path (abstract sockets are not supported by this version)", addr)
		}
		return addr, nil
	}
	addr = strings.TrimPrefix(addr, "grpc://")
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", fmt.Errorf("addr %q: %w", s.plugin.Addr, err)
	}
	if host == "" && !s.PlainTextAnywhere {
		host = "127.0.0.1"
	}
	addr = net.JoinHostPort(host, port)
	if !s.PlainTextAnywhere {
		if err := listen.Loopback(addr); err != nil {
			return "", fmt.Errorf("addr: %w; listen there or on a unix socket, or give -plaintext-anywhere", err)
		}
	}
	return addr, nil
}

// alone answers checks as the OPA-Envoy plugin does.
type alone struct {
	authv3.UnimplementedAuthorizationServer
	program *rego.Program
	input   rego.InputOptions
	dryRun  bool
	timeout time.Duration
	metrics *metrics
	record  decisionLog
	log     *slog.Logger
}

// Check implements envoy.service.auth.v3.Authorization. Unlike the plugin it
// answers a failed evaluation with a denial and not with an error of the call.
func (a *alone) Check(ctx context.Context, req *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	start := time.Now()
	v := &verdict{id: newID()}
	resp := a.decide(ctx, req, v)
	if a.dryRun && !v.allow {
		resp.Status = &status.Status{Code: int32(codes.OK)}
		resp.HttpResponse = &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{}}
	}
	if resp.DynamicMetadata == nil {
		resp.DynamicMetadata = &structpb.Struct{Fields: make(map[string]*structpb.Value, 1)}
	}
	resp.DynamicMetadata.Fields[metadataID] = structpb.NewStringValue(v.id)
	v.took = time.Since(start)
	a.metrics.counted(v)
	a.record.record(ctx, req, v)
	return resp, nil
}

func (a *alone) decide(ctx context.Context, req *authv3.CheckRequest, v *verdict) (resp *authv3.CheckResponse) {
	refused := func() *authv3.CheckResponse {
		return &authv3.CheckResponse{Status: &status.Status{Code: int32(codes.PermissionDenied)}}
	}
	defer func() {
		if p := recover(); p != nil {
			a.log.ErrorContext(ctx, "panic in a decision", slog.String("decision_id", v.id), slog.Any("panic", p), slog.String("stack", string(debug.Stack())))
			v.fail("", "", "panic")
			resp = refused()
		}
	}()
	in, err := rego.NewInput(req, a.input)
	if err != nil {
		v.fail("", "", err.Error())
		resp = refused()
		resp.Status.Message = err.Error()
		resp.HttpResponse = &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{
			Status: &typev3.HttpStatus{Code: typev3.StatusCode_BadRequest}, Body: err.Error(),
		}}
		return resp
	}
	d, err := a.program.Eval(ctx, in, a.timeout)
	if err != nil {
		v.fail("", "", err.Error())
		a.log.WarnContext(ctx, "no decision", slog.String("decision_id", v.id), slog.Any("error", err))
		return refused()
	}
	v.allow, v.detail = d.Allowed, d.Reason
	return pluginResponse(d)
}

// pluginResponse has nothing that the decision does not ask for.
func pluginResponse(d rego.Decision) *authv3.CheckResponse {
	resp := &authv3.CheckResponse{Status: &status.Status{Code: int32(codes.PermissionDenied)}, DynamicMetadata: d.Metadata}
	if d.Allowed {
		resp.Status.Code = int32(codes.OK)
	}
	switch {
	case !d.Structured:
	case d.Allowed:
		resp.HttpResponse = &authv3.CheckResponse_OkResponse{OkResponse: okResponse([]rego.Decision{d})}
	default:
		code := d.Status
		if code == 0 {
			code = http.StatusForbidden
		}
		resp.HttpResponse = &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{
			Status: &typev3.HttpStatus{Code: typev3.StatusCode(code)}, Headers: headers(d.Headers), Body: d.Body,
		}}
	}
	return resp
}

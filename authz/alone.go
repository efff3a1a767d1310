package authz

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"runtime/debug"
	"sync/atomic"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/reflection"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/writ-mesh/writ/authz/background"
	"github.com/writ-mesh/writ/authz/bundle"
	"github.com/writ-mesh/writ/authz/decisionlog"
	"github.com/writ-mesh/writ/authz/rego"
	"github.com/writ-mesh/writ/internal/listen"
	"github.com/writ-mesh/writ/internal/rpc"
	"github.com/writ-mesh/writ/internal/service"
)

// runAlone runs the service in place of the OPA-Envoy plugin.
func runAlone(ctx context.Context, c Config, rt *service.Runtime) error {
	s := c.Alone
	m := newMetrics(rt.Metrics)
	a := &alone{asks: newEvaluator(c.Decision, decisionlog.NewRedactor(nil, nil, nil), rt.Metrics), metrics: m, unlogged: newUnlogged(rt.Metrics), log: rt.Log}
	o := s.managerOptions(rt.Log, rt.Metrics, os.Stderr)
	o.Read = func(section []byte) (string, func(), error) {
		p, err := s.readPlugin(section)
		return p.query, func() { a.plugin.Store(&p) }, err
	}
	reports := newBundleMetrics(rt.Metrics)
	o.Report = reports.report
	o.Ahead = a.asks.decideAhead
	o.Rego.Memory = c.Decision.memory()
	var err error
	if a.manager, err = bundle.NewManager(ctx, o); err != nil {
		return err
	}
	if err := a.manager.Prepare(ctx); err != nil {
		return err
	}
	state := func(err error) { rt.Health.Set(healthPolicies, err) }
	return service.RunTasks(ctx, background.PaceGarbage(garbage), a.asks.workers.Run,
		func(ctx context.Context) error { return a.manager.Run(ctx, state) },
		func(ctx context.Context) error { return a.serve(ctx, s, rt) })
}

// serve answers checks once the plugin's section is known, which may come by
// discovery.
func (a *alone) serve(ctx context.Context, s *Standalone, rt *service.Runtime) error {
	if err := a.manager.Configured(ctx); err != nil {
		return nil //nolint:nilerr // the service ends before it began
	}
	p := a.plugin.Load()
	if p.EnablePerformanceMetrics {
		a.performance = newPluginMetrics(rt.Metrics, p.Buckets)
	}
	addr, err := s.address(p.Addr)
	if err != nil {
		return err
	}
	l, err := listen.Listen(addr)
	if err != nil {
		return err
	}
	opts := append(serverOptions(p.MaxRecv), grpc.Creds(insecure.NewCredentials()))
	if p.MaxSend > 0 {
		opts = append(opts, grpc.MaxSendMsgSize(p.MaxSend))
	}
	g := grpc.NewServer(opts...)
	authv3.RegisterAuthorizationServer(g, a)
	if p.EnableReflection {
		reflection.Register(g)
	}
	tasks := []func(context.Context) error{func(ctx context.Context) error { return rpc.Serve(ctx, g, l) }}
	if httpAddr, err := s.httpAddress(); err != nil {
		return err
	} else if httpAddr != "" {
		h, err := listen.Listen(httpAddr)
		if err != nil {
			return err
		}
		form := &httpForm{check: a.Check, maxBody: int64(p.MaxRecv)}
		tasks = append(tasks, func(ctx context.Context) error { return form.serve(ctx, h) })
	}
	rt.Health.Set(healthListener, nil)
	return service.RunTasks(ctx, tasks...)
}

// alone answers checks as the OPA-Envoy plugin does.
type alone struct {
	authv3.UnimplementedAuthorizationServer
	manager *bundle.Manager
	// plugin is the plugin's section, nil until it is known.
	plugin      atomic.Pointer[pluginConfig]
	asks        *evaluator
	metrics     *metrics
	performance *pluginMetrics
	// unlogged counts decisions that OPA's decision log did not take.
	unlogged prometheus.Counter
	log      *slog.Logger
}

// errNoPolicy: bundles are configured and none has arrived.
var errNoPolicy = errors.New("no policy is in force yet")

// Check implements envoy.service.auth.v3.Authorization. Unlike the plugin it
// answers a failed evaluation with a denial and not with an error of the call.
func (a *alone) Check(ctx context.Context, req *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	start := time.Now()
	v := &verdict{id: newID()}
	p := a.plugin.Load()
	d := bundle.Decision{ID: v.id, Path: p.Path, Query: p.Query, Snapshot: a.manager.Current()}
	resp := a.decide(ctx, req, start, p, v, &d)
	if p.DryRun && !v.allow {
		resp.Status = &status.Status{Code: int32(codes.OK)}
		resp.HttpResponse = &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{}}
	}
	if resp.DynamicMetadata == nil {
		resp.DynamicMetadata = &structpb.Struct{Fields: make(map[string]*structpb.Value, 1)}
	}
	resp.DynamicMetadata.Fields[metadataID] = structpb.NewStringValue(v.id)
	v.took = time.Since(start)
	a.metrics.counted(v)
	a.performance.observe(v.took, d.Err)
	// A caller that went away was decided about too.
	if err := a.manager.Log(context.WithoutCancel(ctx), d); err != nil {
		a.log.WarnContext(ctx, "a decision is missing in OPA's decision log", slog.String("decision_id", v.id), slog.Any("error", err))
		a.unlogged.Inc()
	}
	return resp, nil
}

func (a *alone) decide(ctx context.Context, req *authv3.CheckRequest, now time.Time, p *pluginConfig, v *verdict, d *bundle.Decision) (resp *authv3.CheckResponse) {
	refuse := func(err error) *authv3.CheckResponse {
		d.Result, d.Err = nil, err
		v.fail("", "", err.Error())
		return &authv3.CheckResponse{Status: &status.Status{Code: int32(codes.PermissionDenied)}}
	}
	defer func() {
		if p := recover(); p != nil {
			a.log.ErrorContext(ctx, "panic in a decision", slog.String("decision_id", v.id), slog.Any("panic", p), slog.String("stack", string(debug.Stack())))
			resp = refuse(errors.New("panic"))
		}
	}()
	in, err := rego.NewInput(req, rego.InputOptions{SkipBody: p.SkipBody, Messages: p.set})
	if err != nil {
		resp = refuse(err)
		resp.Status.Message = err.Error()
		resp.HttpResponse = &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{
			Status: &typev3.HttpStatus{Code: typev3.StatusCode_BadRequest}, Body: err.Error(),
		}}
		return resp
	}
	d.Input = in
	if d.Snapshot == nil {
		return refuse(errNoPolicy)
	}
	out, cached, err := a.asks.eval(ctx, d.Snapshot.Program, in, time.Now())
	v.asked(d.Snapshot.Program, cached)
	if err != nil {
		a.log.WarnContext(ctx, "no decision", slog.String("decision_id", v.id), slog.Any("error", err))
		return refuse(err)
	}
	v.allow, v.detail, d.Result = out.Allowed, out.Reason, out.Result()
	return pluginResponse(out)
}

// pluginResponse has nothing that the decision does not ask for.
func pluginResponse(d rego.Decision) *authv3.CheckResponse {
	resp := &authv3.CheckResponse{Status: &status.Status{Code: int32(codes.PermissionDenied)}, DynamicMetadata: copyStruct(d.Metadata)}
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

// copyStruct gives a struct of its own to who adds a field: decisions are shared.
func copyStruct(s *structpb.Struct) *structpb.Struct {
	if s == nil {
		return nil
	}
	out := &structpb.Struct{Fields: make(map[string]*structpb.Value, len(s.GetFields())+1)}
	for k, v := range s.GetFields() {
		out.Fields[k] = v
	}
	return out
}

package accesslog

import (
	"context"
	"io"
	"strings"
	"testing"

	datav3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
)

// reporter is a stream with one message.
type reporter struct {
	grpc.ServerStream
	message *accesslogv3.StreamAccessLogsMessage
}

func (r *reporter) Context() context.Context { return context.Background() }

func (r *reporter) Recv() (*accesslogv3.StreamAccessLogsMessage, error) {
	m := r.message
	if r.message = nil; m == nil {
		return nil, io.EOF
	}
	return m, nil
}

func (r *reporter) SendAndClose(*accesslogv3.StreamAccessLogsResponse) error { return nil }

// FuzzReport takes any report: nothing in it ends the service, and what is refused is
// so by Envoy's own words, not by what a program may have written into its answer.
func FuzzReport(f *testing.F) {
	deny, err := structpb.NewStruct(map[string]any{"istio_dry_run_deny_shadow_engine_result": "denied", "denied_by": 7, "payload": map[string]any{"sub": "x"}})
	if err != nil {
		f.Fatal(err)
	}
	entry := &datav3.HTTPAccessLogEntry{
		CommonProperties: &datav3.AccessLogCommon{}, Request: &datav3.HTTPRequestProperties{Path: "/a?b", RequestMethod: 99},
		Response: &datav3.HTTPResponseProperties{ResponseCodeDetails: "rbac_access_denied_matched_policy[AuthorizationPolicy_a/b_rule_0]"},
	}
	entry.CommonProperties.Metadata = metadata(f, rbacHTTP, deny.AsMap())
	for _, m := range []*accesslogv3.StreamAccessLogsMessage{
		{},
		{LogEntries: &accesslogv3.StreamAccessLogsMessage_HttpLogs{HttpLogs: &accesslogv3.StreamAccessLogsMessage_HTTPAccessLogEntries{LogEntry: []*datav3.HTTPAccessLogEntry{entry, {}}}}},
		{LogEntries: &accesslogv3.StreamAccessLogsMessage_TcpLogs{TcpLogs: &accesslogv3.StreamAccessLogsMessage_TCPAccessLogEntries{LogEntry: []*datav3.TCPAccessLogEntry{
			{CommonProperties: &datav3.AccessLogCommon{ConnectionTerminationDetails: "rbac_access_denied_matched_policy[none]"}}, {},
		}}}},
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m := new(accesslogv3.StreamAccessLogsMessage)
		if proto.Unmarshal(b, m) != nil {
			return
		}
		taken := 0
		s := &Server{Take: func(_ context.Context, r Report) error {
			taken++
			details := r.HTTP.GetResponse().GetResponseCodeDetails() + r.Common.GetConnectionTerminationDetails()
			if rule, refused := r.Refused(); refused && !strings.Contains(details, "_denied") && !strings.Contains(details, "ext_authz_") || !refused && rule != "" {
				t.Errorf("refused %v by %q: %v", refused, rule, r)
			}
			r.Observed()
			r.Claims()
			r.Source()
			r.Destination()
			r.UnknownKey()
			_, _, _, _ = r.Method(), r.Path(), r.From(), r.Time()
			return nil
		}}
		if err := s.StreamAccessLogs(&reporter{message: m}); err != nil {
			t.Error(err)
		}
		if want := len(m.GetHttpLogs().GetLogEntry()) + len(m.GetTcpLogs().GetLogEntry()); taken != want {
			t.Errorf("%d of %d reports are taken", taken, want)
		}
	})
}

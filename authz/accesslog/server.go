package accesslog

import (
	"context"
	"errors"
	"io"
	"time"

	datav3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"

	"github.com/writ-mesh/writ/internal/rpc"
)

// Report is one request or connection as an Envoy told of it.
type Report struct {
	// Proxy is the Envoy's node id, To the identity of its workload.
	Proxy, To string
	Common    *datav3.AccessLogCommon
	// HTTP is nil for a connection.
	HTTP *datav3.HTTPAccessLogEntry
}

// Server takes reports.
type Server struct {
	accesslogv3.UnimplementedAccessLogServiceServer

	// Take gets each report. It may wait until there is room, which Envoy notices: it
	// keeps a bounded number of reports, and drops those that come then.
	Take func(context.Context, Report) error
}

// StreamAccessLogs implements envoy.service.accesslog.v3.AccessLogService.
func (s *Server) StreamAccessLogs(stream accesslogv3.AccessLogService_StreamAccessLogsServer) error {
	ctx := stream.Context()
	self := ""
	if id := rpc.CallerFrom(ctx).ID; !id.IsZero() {
		self = id.String()
	}
	proxy := ""
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return stream.SendAndClose(&accesslogv3.StreamAccessLogsResponse{})
		}
		if err != nil {
			return err
		}
		if id := m.GetIdentifier().GetNode().GetId(); id != "" { // in the first message only
			proxy = id
		}
		take := func(common *datav3.AccessLogCommon, entry *datav3.HTTPAccessLogEntry) error {
			to := self
			if to == "" {
				to = uri(common.GetTlsProperties().GetLocalCertificateProperties())
			}
			return s.Take(ctx, Report{Proxy: proxy, To: to, Common: common, HTTP: entry})
		}
		for _, e := range m.GetHttpLogs().GetLogEntry() {
			if err := take(e.GetCommonProperties(), e); err != nil {
				return err
			}
		}
		for _, e := range m.GetTcpLogs().GetLogEntry() {
			if err := take(e.GetCommonProperties(), nil); err != nil {
				return err
			}
		}
	}
}

// uri is the first URI of a certificate.
func uri(c *datav3.TLSProperties_CertificateProperties) string {
	for _, san := range c.GetSubjectAltName() {
		if u := san.GetUri(); u != "" {
			return u
		}
	}
	return ""
}

// From is the caller's identity; empty for plain text.
func (r Report) From() string { return uri(r.Common.GetTlsProperties().GetPeerCertificateProperties()) }

// Time is when the request began.
func (r Report) Time() time.Time {
	if t := r.Common.GetStartTime(); t != nil {
		return t.AsTime()
	}
	return time.Now()
}

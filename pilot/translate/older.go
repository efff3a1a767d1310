package translate

import (
	"bytes"
	"fmt"
	"maps"
	"slices"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	filelogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	grpclogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/grpc/v3"
	streamlogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stream/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

// OlderEnvoy tells whether an Envoy of that version needs ForOlderEnvoys: one before
// 1.40, or of no version that can be read.
func OlderEnvoy(version string) bool {
	var major, minor int
	if _, err := fmt.Sscanf(version, "%d.%d.", &major, &minor); err != nil {
		return true
	}
	return major < 1 || major == 1 && minor < 40
}

// ForOlderEnvoys gives a resource without what Envoys before 1.40 refuse, which is the
// groups of TLS in our own access log, and the names of policies in reports. It is the
// same resource if that has nothing of the kind. A format that the mesh's own
// configuration has is left as it is.
func ForOlderEnvoys(resource *anypb.Any) (*anypb.Any, error) {
	l := new(listenerv3.Listener)
	if !resource.MessageIs(l) || !(bytes.Contains(resource.GetValue(), []byte("TLS_GROUP%")) || bytes.Contains(resource.GetValue(), []byte(configpb.ReportDryRunAllow))) {
		return resource, nil
	}
	if err := resource.UnmarshalTo(l); err != nil {
		return nil, err
	}
	for _, chain := range slices.Concat(l.GetFilterChains(), []*listenerv3.FilterChain{l.GetDefaultFilterChain()}) {
		for _, f := range chain.GetFilters() {
			if err := olderFilter(f); err != nil {
				return nil, fmt.Errorf("listener %s: filter %s: %w", l.GetName(), f.GetName(), err)
			}
		}
	}
	return packed(l)
}

func olderFilter(f *listenerv3.Filter) error {
	var m interface {
		proto.Message
		GetAccessLog() []*accesslogv3.AccessLog
	}
	switch config := f.GetTypedConfig(); {
	case config.MessageIs((*hcmv3.HttpConnectionManager)(nil)):
		m = new(hcmv3.HttpConnectionManager)
	case config.MessageIs((*tcpproxyv3.TcpProxy)(nil)):
		m = new(tcpproxyv3.TcpProxy)
	default:
		return nil
	}
	if err := f.GetTypedConfig().UnmarshalTo(m); err != nil {
		return err
	}
	for _, log := range m.GetAccessLog() {
		if err := olderLog(log); err != nil {
			return err
		}
	}
	body, err := packed(m)
	if err == nil {
		f.ConfigType = &listenerv3.Filter_TypedConfig{TypedConfig: body}
	}
	return err
}

func olderLog(log *accesslogv3.AccessLog) error {
	var m proto.Message
	var format *structpb.Struct
	switch config := log.GetTypedConfig(); {
	case config.MessageIs((*streamlogv3.StdoutAccessLog)(nil)):
		l := new(streamlogv3.StdoutAccessLog)
		if err := config.UnmarshalTo(l); err != nil {
			return err
		}
		m, format = l, l.GetLogFormat().GetJsonFormat()
	case config.MessageIs((*filelogv3.FileAccessLog)(nil)):
		l := new(filelogv3.FileAccessLog)
		if err := config.UnmarshalTo(l); err != nil {
			return err
		}
		m, format = l, l.GetLogFormat().GetJsonFormat()
	case config.MessageIs((*grpclogv3.HttpGrpcAccessLogConfig)(nil)):
		l := new(grpclogv3.HttpGrpcAccessLogConfig)
		if err := config.UnmarshalTo(l); err != nil {
			return err
		}
		m, l.CommonConfig.CustomTags = l, nil
	case config.MessageIs((*grpclogv3.TcpGrpcAccessLogConfig)(nil)):
		l := new(grpclogv3.TcpGrpcAccessLogConfig)
		if err := config.UnmarshalTo(l); err != nil {
			return err
		}
		m, l.CommonConfig.CustomTags = l, nil
	default:
		return nil
	}
	maps.DeleteFunc(format.GetFields(), func(name string, v *structpb.Value) bool {
		return v.GetStringValue() == logFields()[name] && (v.GetStringValue() == downstreamGroup || v.GetStringValue() == upstreamGroup)
	})
	body, err := packed(m)
	if err == nil {
		log.ConfigType = &accesslogv3.AccessLog_TypedConfig{TypedConfig: body}
	}
	return err
}

// packed is deterministic: the version of a resource is its content's.
func packed(m proto.Message) (*anypb.Any, error) {
	body := new(anypb.Any)
	return body, anypb.MarshalFrom(body, m, proto.MarshalOptions{Deterministic: true})
}

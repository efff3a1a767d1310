package translate

import (
	"net"
	"net/netip"
	"strconv"
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/writ-mesh/writ/pilot/model"
)

// protocolNamed reads the protocol of a Gateway server or a Sidecar listener.
// What has no name that we know is TCP.
func protocolNamed(name string) model.Protocol {
	switch strings.ToUpper(name) {
	case "HTTP", "HTTP_PROXY":
		return model.HTTP
	case "HTTP2", "H2C":
		return model.HTTP2
	case "GRPC":
		return model.GRPC
	case "GRPC-WEB":
		return model.GRPCWeb
	case "HTTPS":
		return model.HTTPS
	case "TLS":
		return model.TLS
	case "MONGO":
		return model.Mongo
	case "REDIS":
		return model.Redis
	case "MYSQL":
		return model.MySQL
	case "UDP":
		return model.UDP
	}
	return model.TCP
}

// inboundPorts are the workload's ports, or those that a Sidecar's ingress
// lists instead.
func inboundPorts(p *model.Proxy, sidecar *model.Sidecar) []model.WorkloadPort {
	if sidecar == nil || len(sidecar.Spec.GetIngress()) == 0 {
		return p.Ports
	}
	var out []model.WorkloadPort
	for _, in := range sidecar.Spec.GetIngress() {
		wp := model.WorkloadPort{
			Name: in.GetPort().GetName(), Protocol: protocolNamed(in.GetPort().GetProtocol()),
			Port: in.GetPort().GetNumber(), App: in.GetPort().GetNumber(), AppAddress: netip.MustParseAddr("127.0.0.1"),
		}
		// Where the program is started by us it listens where we told it to.
		for _, own := range p.Ports {
			if own.Port == wp.Port {
				wp.App, wp.AppAddress = own.App, own.AppAddress
			}
		}
		toEndpoint(&wp, in.GetDefaultEndpoint(), p.Ports)
		out = append(out, wp)
	}
	return out
}

// toEndpoint has a port lead to 127.0.0.1:PORT, :PORT or unix:///PATH. An address of
// the instance, 0.0.0.0, is the program too; its port is one of those that callers use.
func toEndpoint(wp *model.WorkloadPort, endpoint string, ports []model.WorkloadPort) {
	if path, ok := strings.CutPrefix(endpoint, "unix://"); ok {
		wp.AppSocket = path
		return
	}
	host, port, err := net.SplitHostPort(endpoint)
	if err != nil {
		return
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return
	}
	wp.App = uint32(number)
	if addr, err := netip.ParseAddr(host); err == nil && addr.IsLoopback() {
		wp.AppAddress = addr
	}
	for _, own := range ports {
		if own.Port == wp.App {
			wp.App, wp.AppAddress = own.App, own.AppAddress
			return
		}
	}
}

// inboundPool has the limits that a Sidecar sets for what comes in on a port.
func inboundPool(sidecar *model.Sidecar, port uint32) *networking.ConnectionPoolSettings {
	if sidecar == nil {
		return nil
	}
	for _, in := range sidecar.Spec.GetIngress() {
		if in.GetPort().GetNumber() == port && in.GetConnectionPool() != nil {
			return in.GetConnectionPool()
		}
	}
	return sidecar.Spec.GetInboundConnectionPool()
}

// swift-tools-version: 5.9
import PackageDescription

let package = Package(
    name: "MobileExportCore",
    platforms: [.iOS(.v16), .macOS(.v13)],
    products: [.library(name: "MobileExportCore", targets: ["MobileExportCore"])],
    targets: [
        .target(name: "MobileExportCore"),
        .testTarget(name: "MobileExportCoreTests", dependencies: ["MobileExportCore"]),
    ]
)

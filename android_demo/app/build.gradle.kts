plugins {
    alias(libs.plugins.android.application) // compiles Kotlin, too
}

android {
    namespace = "org.mobileexport.demo"
    compileSdk = 36

    defaultConfig {
        applicationId = "org.mobileexport.demo"
        minSdk = 29
        targetSdk = 36
        versionCode = 1
        versionName = "1"
        // The AAR has no version of its own to ask for.
        buildConfigField("String", "EXECUTORCH_VERSION", "\"${libs.versions.executorch.get()}\"")
        ndk {
            abiFilters += listOf("arm64-v8a", "x86_64") // those of the AAR
        }
    }

    buildFeatures {
        buildConfig = true
    }

    buildTypes {
        release {
            signingConfig = signingConfigs.getByName("debug") // to measure what is optimised; not to publish
        }
    }

    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }
}

dependencies {
    implementation(project(":core"))
    implementation(libs.executorch.android)
}
